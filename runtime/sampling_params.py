"""``SamplingParams``: the parameters of a request besides its prompt. They are checked here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import Any

MAX_LOGPROBS = 20
"""The most alternatives that ``logprobs`` may request."""

GREEDY_BELOW = 1e-5
"""Temperatures below this decode greedily: logits divided by less leave float32's range, and only the likeliest token could be drawn."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to decode one request, and when to stop.

    ``temperature``: 0 to 100; 0 is greedy. ``top_k``: sample among the k likeliest tokens; 0 disables it. ``top_p``: nucleus sampling
    threshold, above 0; 1 disables it. ``seed``: the same seed gives the same text whatever the tree; None uses a random one.
    ``max_new_tokens``: None means up to the end of the context. ``stop``: strings that end the answer; they are not part of its text.
    ``logprobs``: None, or how many of the likeliest alternatives to report with each chosen token's log-probability (0 to 20), both before
    temperature, top_k and top_p. ``deadline``: seconds from the call. The answer then ends after the current round, or without a token
    during prefill. Raises ValueError or TypeError, which name the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = 512
    stop: Sequence[str] = ()
    logprobs: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= _number("temperature", self.temperature) <= 100:
            raise ValueError(f"temperature must be between 0 and 100, not {self.temperature}")
        if not 0 <= _integer("top_k", self.top_k) < 2**31:
            raise ValueError(f"top_k must be 0 (disabled) or more, not {self.top_k}")
        if not 0 < _number("top_p", self.top_p) <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and not 0 <= _integer("seed", self.seed) < 2**64:
            raise ValueError(f"seed must be between 0 and 2**64 - 1, not {self.seed}")
        if self.max_new_tokens is not None and _integer("max_new_tokens", self.max_new_tokens) < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}")
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError("stop must be a sequence of non-empty strings")
        object.__setattr__(self, "stop", tuple(self.stop))  # the caller may change its list later
        if self.logprobs is not None and not 0 <= _integer("logprobs", self.logprobs) <= MAX_LOGPROBS:
            raise ValueError(f"logprobs must be None or from 0 to {MAX_LOGPROBS}, not {self.logprobs}")
        if self.deadline is not None and not _number("deadline", self.deadline) >= 0:
            raise ValueError(f"deadline must be 0 seconds or more, not {self.deadline}")

    @property
    def greedy(self) -> bool:
        """Whether every token is the target's likeliest one."""
        return self.temperature < GREEDY_BELOW


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value}")
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
