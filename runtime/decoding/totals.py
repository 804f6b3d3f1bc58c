"""What all requests of a Decoder came to, in the names that vLLM and llama.cpp use."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policy import Policy, Watchdog

from .stats import Tally, named, reached


@dataclass(frozen=True)
class Totals:
    """Sums over the requests that are over.

    ``num_drafts``: rounds in which anything was drafted; ``num_draft_tokens``: without the roots; ``num_accepted_tokens_per_pos``: rounds
    that accepted a draft token at depth 1, 2, ...; ``mean_acceptance_length``: tokens of a round with a draft, bonus included (1.0 before
    the first). ``cached_prompt_tokens``: those of ``prompt_tokens`` that an earlier request had left in the cache. ``requests``: by the
    reason they ended (eos, length, stop_string, cancelled, deadline, error); ``actions``: rounds by the tree that was asked for,
    "nodes,depth,width". ``guard``: what the default policy's watchdog does now: "policy" (lets it work), "fixed" (gave it up for the fixed
    tree), "paused" (decodes plainly for a while), or "none" where nothing is watched.
    """

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_tokens_per_pos: tuple[int, ...]
    mean_acceptance_length: float
    draft_acceptance_rate: float
    prompt_tokens: int
    cached_prompt_tokens: int
    generation_tokens: int
    requests: Mapping[str, int]
    prefill_seconds: float
    decode_seconds: float
    draft_seconds: float
    verify_seconds: float
    actions: Mapping[str, int]
    guard: str

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass
class Ledger:
    """Takes in finished requests, from any thread and from finalizers: ``add`` waits for no lock."""

    _new: deque[tuple[Tally, str]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sum: Tally = field(default_factory=lambda: Tally(0))
    _ended: Counter[str] = field(default_factory=Counter)

    def add(self, tally: Tally, reason: str) -> None:
        self._new.append((tally, reason))
        if self._lock.acquire(blocking=False):  # else whoever holds it, or the next one, sums this too
            try:
                self._fold()
            finally:
                self._lock.release()

    def _fold(self) -> None:
        while self._new:
            tally, reason = self._new.popleft()
            self._ended[reason] += 1
            for name in (each.name for each in dataclasses.fields(Tally)):
                value = getattr(tally, name)
                if isinstance(value, dict):
                    sums = getattr(self._sum, name)
                    sums.update({key: sums.get(key, 0) + count for key, count in value.items()})
                else:
                    setattr(self._sum, name, getattr(self._sum, name) + value)

    def totals(self, policy: Policy) -> Totals:
        """``policy``: whose watchdog is asked."""
        with self._lock:
            self._fold()
            total = self._sum
            return Totals(
                num_drafts=total.drafts,
                num_draft_tokens=total.drafted,
                num_accepted_tokens=total.accepted,
                num_accepted_tokens_per_pos=reached(total.per_position),
                mean_acceptance_length=1 + total.accepted / total.drafts if total.drafts else 1.0,
                draft_acceptance_rate=total.accepted / total.drafted if total.drafted else 0.0,
                prompt_tokens=total.prompt_tokens,
                cached_prompt_tokens=total.cached_prompt_tokens,
                generation_tokens=total.new_tokens,
                requests=dict(self._ended),
                prefill_seconds=total.prefill_seconds,
                decode_seconds=total.decode_seconds,
                draft_seconds=total.draft_seconds,
                verify_seconds=total.verify_seconds,
                actions=named(total.actions),
                guard=policy.state if isinstance(policy, Watchdog) else "none",
            )
