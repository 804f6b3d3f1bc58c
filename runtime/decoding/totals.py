"""Statistics over all finished requests of a Decoder, with the names that vLLM and llama.cpp use."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policy import Guarded, Policy, Watchdog

from .cycle import CycleEvent, Listener
from .stats import RequestCounters, accepted_per_position, action_counts


@dataclass(frozen=True)
class Totals:
    """Sums over finished requests; ``passes`` and ``rows`` also count those of running ones.

    ``passes``: verification passes, each of which may serve several requests. ``rows``: rows verified in them, roots included.
    ``num_drafts``: rounds that drafted at least one token. ``num_draft_tokens``: proposed draft tokens, without roots.
    ``num_accepted_tokens_per_pos``: rounds that accepted a draft token at depth 1, 2, ... ``mean_acceptance_length``: tokens per round with
    a draft, bonus token included (1.0 before the first). ``cached_prompt_tokens``: those of ``prompt_tokens`` that an earlier request had
    left in the cache. ``requests``: by the reason they ended (eos, length, stop_string, cancelled, deadline, error). ``actions``: rounds by
    requested tree, "nodes,depth,width". ``guard``: the state of the last request's watchdog: "policy" (the policy runs), "fixed" (the
    fixed tree replaced it), "paused" (plain decoding for some rounds), or "none" (there is no watchdog).
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
    passes: int
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """The totals as plain values, for JSON."""
        return dataclasses.asdict(self)


_log = logging.getLogger("resps")


@dataclass
class TotalsRecorder:
    """Sums the counters of finished requests, and passes. ``add`` and ``add_pass`` may be called from any thread and from finalizers: they
    never wait for a lock. ``listener``: of `tell`."""

    _pending: deque[tuple[RequestCounters, str]] = field(default_factory=deque)
    _pending_rows: deque[int] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sum: RequestCounters = field(default_factory=lambda: RequestCounters(0))
    _end_reasons: Counter[str] = field(default_factory=Counter)
    _passes: int = 0
    _rows: int = 0
    listener: Listener | None = None

    def add(self, counters: RequestCounters, reason: str) -> None:
        """Record a finished request and the reason it ended."""
        self._pending.append((counters, reason))
        self._sum_if_free()

    def add_pass(self, rows: int) -> None:
        """Record a verification pass of ``rows`` rows, whether of one request or of several."""
        self._pending_rows.append(rows)
        self._sum_if_free()

    def tell(self, cycle: CycleEvent) -> None:
        """Hand a cycle to ``listener``. One that raises is not called again, and no request notices."""
        if self.listener is not None:
            try:
                self.listener(cycle)
            except Exception:
                self.listener = None
                _log.exception("a listener to cycles failed, and is not called again")

    def _sum_if_free(self) -> None:
        if self._lock.acquire(blocking=False):  # otherwise the holder of the lock, or the next caller, sums what is pending
            try:
                self._sum_pending()
            finally:
                self._lock.release()

    def _sum_pending(self) -> None:
        while self._pending_rows:
            self._rows += self._pending_rows.popleft()
            self._passes += 1
        while self._pending:
            counters, reason = self._pending.popleft()
            self._end_reasons[reason] += 1
            for name in (each.name for each in dataclasses.fields(RequestCounters)):
                value = getattr(counters, name)
                if isinstance(value, dict):
                    sums = getattr(self._sum, name)
                    sums.update({key: sums.get(key, 0) + count for key, count in dict(value).items()})  # a lane's round may be ending
                else:
                    setattr(self._sum, name, getattr(self._sum, name) + value)

    def totals(self, policy: Policy) -> Totals:
        """The Totals so far. ``policy``: the last request's, for the state of its watchdog."""
        with self._lock:
            self._sum_pending()
            total = self._sum
            return Totals(
                num_drafts=total.drafts,
                num_draft_tokens=total.drafted,
                num_accepted_tokens=total.accepted,
                num_accepted_tokens_per_pos=accepted_per_position(total.rounds_by_accepted),
                mean_acceptance_length=1 + total.accepted / total.drafts if total.drafts else 1.0,
                draft_acceptance_rate=total.accepted / total.drafted if total.drafted else 0.0,
                prompt_tokens=total.prompt_tokens,
                cached_prompt_tokens=total.cached_prompt_tokens,
                generation_tokens=total.new_tokens,
                requests=dict(self._end_reasons),
                prefill_seconds=total.prefill_seconds,
                decode_seconds=total.decode_seconds,
                draft_seconds=total.draft_seconds,
                verify_seconds=total.verify_seconds,
                actions=action_counts(total.actions),
                guard=policy.state if isinstance(policy, Watchdog | Guarded) else "none",
                passes=self._passes,
                rows=self._rows,
            )
