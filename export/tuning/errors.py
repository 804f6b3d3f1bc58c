"""The error of resps-tune; exit code 1."""

from __future__ import annotations

from runtime.errors import RespsError


class TuningError(RespsError):
    """Tuning is not possible with the given engine, prompts or files."""
