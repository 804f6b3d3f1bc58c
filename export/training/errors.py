"""Errors of the draft training."""

from __future__ import annotations

from ..errors import ExportError


class TrainingError(ExportError):
    """A draft cannot be trained or packed as asked (exit 1)."""
