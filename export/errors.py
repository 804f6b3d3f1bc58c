"""The exporter's errors. All derive from runtime.errors.RespsError. A message is one line: what happened — what to do.

RespsError
└── ExportError              any expected failure of an export                             (exit 1)
    ├── UnknownModel         --model is not a known name                                      (exit 2)
    ├── UnsupportedModel     the graphs cannot express this architecture exactly
    ├── UnfitPolicy          --policy cannot be read, or does not fit the exported model      (exit 2)
    ├── CheckpointError      weights are missing, damaged or have the wrong hash
    ├── ParityError          an exported graph differs from the numpy reference
    └── EngineBuildError     TensorRT cannot read a graph or build its plan
"""

from __future__ import annotations

from runtime.errors import RespsError


class ExportError(RespsError):
    """Base class of the exporter's expected failures."""


class UnsupportedModel(ExportError):
    """The graphs cannot express this architecture exactly."""


class UnknownModel(ExportError):
    """The model's name is not in export/checkpoints/models.py."""

    exit_code = 2


class UnfitPolicy(ExportError):
    """The tuning given with --policy cannot be read, or is for another draft, other tree sizes or other network inputs."""

    exit_code = 2


class CheckpointError(ExportError):
    """The weights are missing, damaged, or not the expected ones (wrong hash)."""


class EngineBuildError(ExportError):
    """TensorRT cannot read a graph or build its plan, or cannot build on this machine at all."""


class ParityError(ExportError):
    """An exported graph and the numpy reference compute different results from the same weights."""
