"""What can go wrong in the bench of peers."""

from __future__ import annotations

from runtime.errors import RespsError


class PeerUnavailable(RespsError):
    """One engine cannot be installed, given the model, or run here; the table says why and the others go on."""


class PeerError(RespsError):
    """The bench cannot be run as asked."""

    exit_code = 2
