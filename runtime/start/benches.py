"""Runs single passes and drafts of a Decoder where no request runs, so that they can be timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from policy import LaneHistory, TreeSpec

from ..backends.lane_cache import LaneCache
from ..decoding.sampling import TargetOutput
from ..decoding.target import Target
from ..decoding.tree import Tree
from ..drafters.draft_model import ModelDrafter
from ..drafters.growth import GrowingTree
from ..lanes.draft import DraftLane, LanesDraft, Wish
from ..lanes.forest import Forest
from ..lanes.target import LanePass, LanesTarget
from ..models import Models

COMMITTED = 2  # tokens that a lane usually commits in a round
ROWS_OF_A_LANE = 8  # at most, in a measured pass
TOKEN = 7


class Bench(Protocol):
    """``lanes``: how many take part, the first ones."""

    def fill(self, length: int) -> None:
        """Let every lane hold ``length`` tokens."""

    def verify(self, lanes: int, rows: int) -> object:
        """A pass over ``rows`` rows in all."""

    def drafts(self, lanes: int, width: int, depth: int) -> Mapping[int, float]:
        """Seconds to draft trees by depth, of which ``depth`` is one; right behind a pass, as in service, where the target's weights have
        just evicted the draft's from the processor's caches."""


@dataclass(frozen=True)
class OneLane:
    """The bench of a Decoder with one lane."""

    target: Target
    drafter: ModelDrafter

    def fill(self, length: int) -> None:
        self.target.cache.truncate(0)
        self.drafter.begin()
        self.extend(length)

    def extend(self, tokens: int) -> None:
        """Commit so many more."""
        for chunk, output in self.target.prefill([TOKEN] * tokens):
            self.drafter.extend(chunk, output, range(len(chunk)))

    def verify(self, lanes: int, rows: int) -> TargetOutput:
        return self.target.verify(Tree.chain([TOKEN] * rows))

    def drafts(self, lanes: int, width: int, depth: int) -> dict[int, float]:
        return {levels: self.draft_seconds(TreeSpec(TreeSpec(1, levels, width).capacity, levels, width)) for levels in sorted({1, depth})}

    def draft_seconds(self, spec: TreeSpec) -> float:
        """Seconds to draft a tree behind a pass."""
        output = self.verify(1, COMMITTED)
        started = perf_counter()
        self.drafter.extend([TOKEN] * COMMITTED, output, range(COMMITTED))
        self.drafter.draft(TOKEN, spec)
        return perf_counter() - started


@dataclass(frozen=True)
class SeveralLanes:
    """The bench of a Decoder with several: the caches hold the same number of tokens."""

    target: LanesTarget
    draft: LanesDraft
    caches: Sequence[LaneCache]
    own: Sequence[DraftLane]

    def fill(self, length: int) -> None:
        for cache, own in zip(self.caches, self.own, strict=True):  # whatever the pages hold, reading it takes as long
            cache.reserve(length + ROWS_OF_A_LANE)
            own.cache.reserve(length)
            cache.length = own.cache.length = own.length = length

    def verify(self, lanes: int, rows: int) -> list[LanePass]:
        sizes = [rows // lanes + (at < rows % lanes) for at in range(lanes)]
        return self.target.verify([(cache, Tree.chain([TOKEN] * size)) for cache, size in zip(self.caches, sizes, strict=False)])

    def verify_uneven(self, lanes: int, widest: int) -> list[LanePass]:
        """A pass with ``widest`` rows of one lane and one of each other."""
        sizes = [widest if at == 0 else 1 for at in range(lanes)]
        return self.target.verify([(cache, Tree.chain([TOKEN] * size)) for cache, size in zip(self.caches, sizes, strict=False)])

    def drafts(self, lanes: int, width: int, depth: int) -> dict[int, float]:
        found = self.verify(lanes, lanes * COMMITTED)
        own = self.own[:lanes]
        before = [(each.cache.length, each.length, each.whole) for each in own]
        marks: list[float] = []

        def deeper(grown: Sequence[tuple[Wish, GrowingTree]]) -> list[bool]:
            marks.append(perf_counter() - started)
            return [True] * len(grown)

        spec = TreeSpec(TreeSpec(1, depth, width).capacity, depth, width)
        for lane, scored in zip(own, found, strict=True):
            self.draft.extend(lane, [TOKEN] * COMMITTED, scored.output.features[:COMMITTED], read=True)
        started = perf_counter()
        self.draft.draft([Wish(lane, TOKEN, spec, history=LaneHistory()) for lane in own], deeper)
        marks.append(perf_counter() - started)
        for lane, (slots, length, whole) in zip(own, before, strict=True):
            lane.cache.length, lane.length, lane.whole = slots, length, whole
            lane.waiting_tokens.clear()
            lane.waiting_features.clear()
            # as if nothing had been read: the next measurement begins with the same draft
        return dict(enumerate(marks, 1))

    def read(self, rows: int, lanes: int) -> None:
        """A pass over a chunk of the last lane's prompt, and one row of each of the first ``lanes`` lanes."""
        *others, reader = self.caches
        chunk = reader, [TOKEN] * rows
        if lanes:
            self.target.verify([(cache, Tree.chain([TOKEN])) for cache in others[:lanes]], chunk)
        else:
            self.target.read_chunk(*chunk)

    def free(self) -> None:
        """Give all pages back."""
        for cache in (*self.caches, *(lane.cache for lane in self.own)):
            cache.free(clear=True)


def one_lane(models: Models) -> OneLane:
    """Of a Decoder with one lane and an EAGLE-3 draft."""
    assert models.model_drafter is not None
    return OneLane(models.target, models.model_drafter)


def several_lanes(forest: Forest, lanes: int) -> SeveralLanes:
    """Of a Decoder with several lanes and an EAGLE-3 draft."""
    assert forest.draft is not None
    caches = [LaneCache(forest.target.cache) for _ in range(lanes)]
    return SeveralLanes(forest.target, forest.draft, caches, [DraftLane(LaneCache(forest.draft.cache)) for _ in caches])
