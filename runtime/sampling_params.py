"""What may be wished for beside a prompt, checked before anything begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

from .decoding.logprobs import MOST
from .decoding.sampling import Sampling


def check_wishes(max_new_tokens: Any, sampling: Any, stop: Any, policy: Any, logprobs: Any, deadline: Any) -> None:
    """Raises ValueError or TypeError, which name the argument."""
    if _whole("max_new_tokens", max_new_tokens) < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if sampling is not None and not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be a Sampling, not {type(sampling).__name__}")
    if isinstance(stop, str) or not isinstance(stop, Sequence) or not all(isinstance(each, str) and each for each in stop):
        raise ValueError("stop must be a sequence of non-empty strings")
    if (
        policy is not None
        and not isinstance(policy, str)
        and not all(callable(getattr(policy, name, None)) for name in ("begin", "choose", "observe"))
    ):
        raise TypeError(f"policy must be a name or a Policy, not {type(policy).__name__}")
    if logprobs is not None and not 0 <= _whole("logprobs", logprobs) <= MOST:
        raise ValueError(f"logprobs must be None or from 0 to {MOST}, not {logprobs}")
    if deadline is not None and (isinstance(deadline, bool) or not isinstance(deadline, (int, float))):
        raise TypeError(f"deadline must be a number of seconds, not {type(deadline).__name__}")
    if deadline is not None and (math.isnan(deadline) or deadline < 0):
        raise ValueError(f"deadline must be 0 seconds or more, not {deadline}")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value}")
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
