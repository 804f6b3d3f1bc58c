"""Errors of the exporter. All derive from runtime.errors.RespsError, whose text is: what happened — what to do.

RespsError
└── ExportError              the export failed                                             (exit 1)
    ├── UnknownModel         no such name in the table                                      (exit 2)
    ├── UnsupportedModel     an architecture or option the graphs cannot express exactly
    ├── UnfitPolicy          --policy cannot be read, or does not fit what is exported        (exit 2)
    ├── CheckpointError      weights missing, truncated, unreadable or with the wrong hash
    ├── ParityError          the exported graph does not compute what the checkpoint does
    └── EngineBuildError     TensorRT cannot read a graph or build its plan
"""

from __future__ import annotations

from runtime.errors import RespsError


class ExportError(RespsError):
    """Base of everything the exporter raises on purpose."""


class UnsupportedModel(ExportError):
    """The model cannot be expressed exactly by our graphs."""


class UnknownModel(ExportError):
    """No such name in the table."""

    exit_code = 2


class UnfitPolicy(ExportError):
    """The tuning that was given cannot be read, or is for another draft, other sizes of trees or other inputs."""

    exit_code = 2


class CheckpointError(ExportError):
    """The weights are missing, truncated, unreadable or not the expected ones."""


class EngineBuildError(ExportError):
    """TensorRT cannot read a graph, build its plan, or build anything on this machine."""


class ParityError(ExportError):
    """The exported graph disagrees with the reference computation on the same weights."""
