"""Requests that an engine failed at: the same body is not tried again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from ..errors import ApiError

ALLOWED_FAILURES = 2
MOST = 4096  # bodies that are remembered, at about 200 bytes each
FORGET_SECONDS = 3600.0  # a request that only ran beside the faulty one may be tried again


@dataclass
class Suspects:
    """Failures by the SHA-256 of a request's body, for the event loop's thread. An answer that succeeds clears its body: requests that
    share a pass fail together, and only one of them is to blame. ``clock``: seconds."""

    clock: Callable[[], float] = monotonic
    _failures: OrderedDict[bytes, tuple[int, float]] = field(default_factory=OrderedDict)

    def expect_innocent(self, digest: bytes) -> None:
        """Raises ApiError for a body that an engine failed at twice."""
        count, last = self._failures.get(digest, (0, 0.0))
        if count >= ALLOWED_FAILURES and self.clock() - last < FORGET_SECONDS:
            message = f"an engine failed at this request {count} times, so it is not tried again for an hour — change it"
            raise ApiError(400, message, code="repeated_engine_failure", outcome="suspect")

    def failed(self, digest: bytes, began: float) -> None:
        """An engine failed while it ran this request, or one of its answers, since ``began`` by the clock. What ran side by side may have
        failed in the same pass: it counts once."""
        count, last = self._failures.get(digest, (0, 0.0))
        if count and began < last:
            return
        self._failures.pop(digest, None)
        now = self.clock()
        self._failures[digest] = (count + 1 if now - last < FORGET_SECONDS else 1, now)
        if len(self._failures) > MOST:
            self._failures.popitem(last=False)

    def succeeded(self, digest: bytes) -> None:
        """This request was answered."""
        self._failures.pop(digest, None)
