"""What each key has used of its requests and tokens a minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from time import monotonic

from ..errors import ApiError
from .keys import Key

MINUTE = 60.0


@dataclass
class _Bucket:
    """What is left of a limit: it fills up evenly to what one minute allows, and may be overdrawn. ``at``: when that was ``left``."""

    limit: int
    left: float
    at: float

    def fill(self, now: float) -> None:
        self.left = min(float(self.limit), self.left + (now - self.at) * self.limit / MINUTE)
        self.at = now

    def wait(self, needed: float) -> float:
        """Seconds until ``needed`` are left."""
        return max(0.0, needed - self.left) * MINUTE / self.limit


@dataclass
class Limits:
    """The use of all keys, for the event loop's thread. ``clock``: seconds."""

    clock: Callable[[], float] = monotonic
    _requests: dict[str, _Bucket] = field(default_factory=dict)
    _tokens: dict[str, _Bucket] = field(default_factory=dict)

    def count_request(self, key: Key) -> None:
        """Count a request. Raises ApiError (429) if ``key`` has used its requests or tokens of this minute; such a request is not
        counted. Tokens are known only when they were made, so the first request above the limit is still answered."""
        tokens = self._bucket(self._tokens, key, key.tokens_per_minute)
        if tokens and tokens.left <= 0:
            raise _exceeded(key, f"{tokens.limit} tokens", tokens.wait(1))
        requests = self._bucket(self._requests, key, key.requests_per_minute)
        if requests:
            if requests.left < 1:
                raise _exceeded(key, f"{requests.limit} requests", requests.wait(1))
            requests.left -= 1

    def count_tokens(self, key: Key, tokens: int) -> None:
        """Count the tokens of a request's prompt and answer, when it ended."""
        bucket = self._bucket(self._tokens, key, key.tokens_per_minute)
        if bucket:
            bucket.left -= tokens

    def _bucket(self, buckets: dict[str, _Bucket], key: Key, limit: int | None) -> _Bucket | None:
        if limit is None:
            return None
        now = self.clock()
        bucket = buckets.setdefault(key.name, _Bucket(limit, limit, now))
        bucket.fill(now)
        return bucket


def _exceeded(key: Key, what: str, seconds: float) -> ApiError:
    message = f"the key {key.name} has used its {what} a minute — send the request again later"
    return ApiError(429, message, code="rate_limit_exceeded", outcome="rate_limited", retry_after=max(1, ceil(seconds)))
