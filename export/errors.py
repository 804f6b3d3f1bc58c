"""Errors of the exporter. All derive from runtime.errors.RespsError; their message is one line: what happened — what to do.

RespsError
└── ExportError              the export failed                                             (exit 1)
    ├── UnknownModel         --model names no known model                                     (exit 2)
    ├── UnsupportedModel     the graphs cannot express this architecture or option exactly
    ├── UnfitPolicy          --policy cannot be read, or does not fit the exported model      (exit 2)
    ├── CheckpointError      weights are missing, truncated, unreadable or have a wrong hash
    ├── ParityError          an exported graph does not compute what the checkpoint does
    └── EngineBuildError     TensorRT cannot read a graph or build its plan
"""

from __future__ import annotations

from runtime.errors import RespsError


class ExportError(RespsError):
    """Base of everything the exporter raises on purpose."""


class UnsupportedModel(ExportError):
    """Our graphs cannot express the model exactly."""


class UnknownModel(ExportError):
    """The model's name is not in export/checkpoints/models.py."""

    exit_code = 2


class UnfitPolicy(ExportError):
    """The tuning given with --policy cannot be read, or is for another draft, other tree sizes or other network inputs."""

    exit_code = 2


class CheckpointError(ExportError):
    """The weights are missing, truncated or unreadable, or are not the expected ones."""


class EngineBuildError(ExportError):
    """TensorRT cannot read a graph, build its plan, or build anything on this machine."""


class ParityError(ExportError):
    """An exported graph gives other results than the reference does with the same weights."""
