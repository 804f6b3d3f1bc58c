"""What can go wrong while tuning; exit code 1, one line."""

from __future__ import annotations

from runtime.errors import RespsError


class TuningError(RespsError):
    """Tuning cannot be done with what was given."""
