"""Statistics of one request: the counters that grow while it runs, and the public Stats made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .loop import Round


@dataclass(frozen=True)
class Stats:
    """Statistics of one request.

    ``cycles``: verification rounds. ``drafted``: proposed draft tokens, without roots. ``accepted``: accepted draft tokens.
    ``tokens_per_cycle``: new tokens per round, bonus token included (the papers' tau), without the first token, which comes from prefill.
    ``tokens_per_second``: the same tokens over ``decode_seconds``. ``cached_prompt_tokens``: the prefix of the prompt that an earlier
    request had left in the cache. ``num_accepted_tokens_per_pos``: rounds that accepted a draft token at depth 1, 2, ... ``actions``:
    rounds by requested tree, "nodes,depth,width". ``drafts``: rounds that drafted at least one token.
    """

    prompt_tokens: int
    new_tokens: int
    cycles: int
    drafted: int
    accepted: int
    tokens_per_cycle: float
    tokens_per_second: float
    prefill_seconds: float
    decode_seconds: float
    draft_seconds: float
    verify_seconds: float
    cached_prompt_tokens: int = 0
    num_accepted_tokens_per_pos: tuple[int, ...] = ()
    actions: Mapping[str, int] = field(default_factory=dict)
    drafts: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The statistics as plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclass
class RequestCounters:
    """Counters of a running request. ``drafts``: rounds that drafted at least one token. ``rounds_by_accepted``: rounds by the number of
    draft tokens they accepted."""

    prompt_tokens: int
    cached_prompt_tokens: int = 0
    new_tokens: int = 0
    cycles: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    rounds_by_accepted: dict[int, int] = field(default_factory=dict)
    actions: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def add(self, round_: Round, kept: int) -> None:
        """Count a round. ``kept``: how many of its tokens belong to the answer; a stop condition may cut off the rest."""
        accepted, spec = min(kept, len(round_.tokens) - 1), round_.spec
        self.new_tokens += kept
        self.cycles += 1
        self.drafts += round_.nodes > 1
        self.drafted += round_.nodes - 1
        self.accepted += accepted
        self.rounds_by_accepted[accepted] = self.rounds_by_accepted.get(accepted, 0) + 1
        tree = (spec.nodes, spec.depth, spec.width)
        self.actions[tree] = self.actions.get(tree, 0) + 1
        self.decode_seconds += round_.seconds
        self.draft_seconds += round_.draft_seconds
        self.verify_seconds += round_.verify_seconds

    def stats(self) -> Stats:
        """The Stats so far."""
        decoded = max(0, self.new_tokens - 1)
        rounds_by_accepted, actions = dict(self.rounds_by_accepted), dict(self.actions)  # another thread may be adding rounds
        return Stats(
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            cycles=self.cycles,
            drafted=self.drafted,
            accepted=self.accepted,
            tokens_per_cycle=decoded / self.cycles if self.cycles else 0.0,
            tokens_per_second=decoded / self.decode_seconds if self.decode_seconds else 0.0,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            draft_seconds=self.draft_seconds,
            verify_seconds=self.verify_seconds,
            cached_prompt_tokens=self.cached_prompt_tokens,
            num_accepted_tokens_per_pos=accepted_per_position(rounds_by_accepted),
            actions=action_counts(actions),
            drafts=self.drafts,
        )


def accepted_per_position(rounds_by_accepted: Mapping[int, int]) -> tuple[int, ...]:
    """Rounds that accepted at least 1, 2, ... draft tokens, from rounds by the exact number."""
    return tuple(
        sum(rounds for accepted, rounds in rounds_by_accepted.items() if accepted >= depth)
        for depth in range(1, max(rounds_by_accepted, default=0) + 1)
    )


def action_counts(actions: Mapping[tuple[int, int, int], int]) -> dict[str, int]:
    """Rounds by "nodes,depth,width", the most frequent tree first."""
    return {",".join(map(str, spec)): rounds for spec, rounds in sorted(actions.items(), key=lambda each: -each[1])}
