"""EAGLE-3 drafting for many lanes: all lanes' levels go through the draft in one pass. Each lane has its own part of the draft's cache.

A committed token enters the draft's cache once, paired with the target's features of the position before it, as in drafters/eagle.py. Rows
of tokens that were committed while nothing was drafted wait. A lane that decodes plainly for longer than a chunk forgets the oldest of
them: its draft then attends to a gap in the text, which makes its trees worse and changes no answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from policy import GrowthPolicy, LaneHistory, TreeSpec

from ..backends.base import Engine
from ..backends.lane_cache import LaneCache, LaneRows, LanesEngine, Pages
from ..drafters.growth import GrowingTree
from ..errors import DRAFT, EngineFailure
from ..manifest.schema import Draft

_log = logging.getLogger("resps")
T = TypeVar("T")
_MANY_ROWS = 16  # rows of a lane; more of them have a pass of their own


@dataclass
class DraftLane:
    """One lane's part of the draft. ``waiting_tokens``, ``waiting_features``: committed tokens that are not in the draft's cache yet.
    ``length``: all committed tokens, the waiting and the forgotten ones included. ``whole``: how many of the first of them are in the cache
    without a gap; a request with the same beginning may copy these."""

    cache: LaneCache
    waiting_tokens: list[int] = field(default_factory=list)
    waiting_features: list[np.ndarray] = field(default_factory=list)  # [F] each
    length: int = 0
    whole: int = 0

    def forget(self) -> None:
        """Forget everything but the cache's pages."""
        self.cache.length = self.length = self.whole = 0
        self.waiting_tokens.clear()
        self.waiting_features.clear()


@dataclass(frozen=True)
class Wish:
    """A tree that a lane wants. ``growth``: asked after every level whether to draft another. ``history``: of a lane that leaves this to
    the row budget. With neither, all levels of ``spec`` are drafted."""

    lane: DraftLane
    root: int
    spec: TreeSpec
    growth: GrowthPolicy | None = None
    history: LaneHistory | None = None


Deeper = Callable[[Sequence[tuple[Wish, GrowingTree]]], Sequence[bool]]
"""Which trees of the row budget's lanes get another level."""


class LanesDraft:
    """Runs the graphs `fuse` and `draft_lanes`. ``chunk``: rows that may wait in a lane, and that one draft pass reads of it.
    ``any_size``: whether a call with a new number of rows costs nothing, as on a CPU."""

    def __init__(self, fuse: Engine, engine: LanesEngine, cache: Pages, draft: Draft, chunk: int, any_size: bool) -> None:
        self._fuse, self._engine, self.cache, self.chunk = fuse, engine, cache, chunk
        self._any_size = any_size
        self.max_depth, self.max_width, self._window = draft.max_depth, draft.max_width, draft.trained_length

    def extend(self, lane: DraftLane, tokens: Sequence[int], features: np.ndarray, read: bool) -> None:
        """``tokens`` were committed, with these ``features`` [n, F]. ``read``: whether to compute what waits once it fills a chunk; else
        the oldest is forgotten."""
        lane.waiting_tokens.extend(tokens)
        lane.waiting_features.extend(features.copy())
        lane.length += len(tokens)
        if not read:
            del lane.waiting_tokens[: -self.chunk], lane.waiting_features[: -self.chunk]
        while len(lane.waiting_tokens) > self.chunk:
            self._safely([lane], lambda: self._read([lane], [None]))

    def draft(self, wishes: Sequence[Wish], deeper: Deeper) -> list[GrowingTree] | None:
        """Grow the wished trees, all lanes' levels in one pass. None if a pass failed."""
        lanes = [wish.lane for wish in wishes]
        trees = self._safely(lanes, lambda: self._grow(wishes, deeper))
        for lane, tree in zip(lanes, trees or (), strict=bool(trees)):
            if not tree.finite:
                self._restart(lane)
        return trees

    def _safely(self, lanes: Sequence[DraftLane], passes: Callable[[], T]) -> T | None:
        """Run ``passes``. A draft that fails ends no request: its lanes decode plainly in this round."""
        try:
            with DRAFT:
                return passes()
        except EngineFailure as error:
            _log.warning("%s — the request goes on without a draft for now", error)
        for lane in lanes:
            self._restart(lane)
        return None

    def _restart(self, lane: DraftLane) -> None:
        """Begin a lane's draft anew after a failure or numbers that are not finite: what it read so far becomes a gap in its text."""
        length = lane.length
        self.cache.clear(lane.cache.pages)
        lane.forget()
        lane.length = length

    def _grow(self, wishes: Sequence[Wish], deeper: Deeper) -> list[GrowingTree]:
        for wish in wishes:  # many waiting rows of one lane would widen the attention of all
            if len(wishes) > 1 and len(wish.lane.waiting_tokens) > _MANY_ROWS:
                self._read([wish.lane], [None])
        trees = [GrowingTree(wish.root, wish.spec, wish.lane.length) for wish in wishes]
        outputs = self._read([wish.lane for wish in wishes], [wish.root for wish in wishes])
        for tree, found in zip(trees, outputs, strict=True):
            tree.add(found["log_probs"], found["candidates"], found["next_hidden"][0, -1:].copy())
        growing = list(zip(wishes, trees, strict=True))
        while growing := _growing(growing, deeper):
            self._add_level(growing)
        return trees

    def _add_level(self, growing: Sequence[tuple[Wish, GrowingTree]]) -> None:
        """One pass over the beams of all trees, each at the position after the level above."""
        rows = []
        for wish, tree in growing:
            cache, width = wish.lane.cache, len(tree.beam_tokens)
            last = cache.length - 1
            start = last + tree.beam_mask.shape[1] - width
            cache.reserve(start + width)
            positions = np.full(width, wish.lane.length - 1 + tree.level)
            rows.append(LaneRows(cache, tree.beam_tokens, positions, start, last, tree.beam_mask, range(width), self._window))
        hidden = np.concatenate([tree.beam_hidden for _, tree in growing])
        outputs = self._engine.run(rows, hidden, max(tree.spec.width for _, tree in growing))
        for (_, tree), found in zip(growing, outputs, strict=True):
            tree.add(found["log_probs"], found["candidates"], found["next_hidden"][0].copy())

    def _read(self, lanes: Sequence[DraftLane], following: Sequence[int | None]) -> Sequence[Mapping[str, np.ndarray]]:
        """Compute the waiting rows, at most a chunk of each lane. ``following``: the token after the last of them; None: it is not known
        yet, and the last row goes on waiting. Returns what the draft gives each lane, with candidates after its last row."""
        counts = [min(len(lane.waiting_tokens) - (token is None), self.chunk) for lane, token in zip(lanes, following, strict=True)]
        features = np.stack([row for lane, count in zip(lanes, counts, strict=True) for row in lane.waiting_features[:count]])
        rows = []
        for lane, token, count in zip(lanes, following, counts, strict=True):
            cache, order = lane.cache, np.arange(count)
            cache.reserve(cache.length + count)
            tokens = np.array([*lane.waiting_tokens[1:], *([] if token is None else [token])][:count], np.int64)
            positions = lane.length - len(lane.waiting_tokens) + order
            mask, last = np.tri(count, dtype=bool), range(count - 1, count)
            rows.append(LaneRows(cache, tokens, positions, cache.length, cache.length, mask, last, self._window))
        outputs = self._engine.run(rows, self._fused(features), self.max_width)
        for lane, count in zip(lanes, counts, strict=True):
            if lane.whole == lane.cache.length and lane.length - len(lane.waiting_tokens) == lane.cache.length:
                lane.whole += count
            lane.cache.length += count
            del lane.waiting_tokens[:count], lane.waiting_features[:count]
        return outputs

    def _fused(self, features: np.ndarray) -> np.ndarray:
        """The draft's input from the target's features [m, F]: [m, H]; valid until the next call."""
        parts = []
        for start in range(0, len(features), self.chunk):
            part = features[start : start + self.chunk]
            count = len(part)
            rows = count if self._any_size else min(1 << (count - 1).bit_length(), self.chunk)
            call = self._fuse.prepare({"features": "lanes.features"}, n=rows, m=rows)
            call.inputs["features"][0, :count], call.inputs["rows"][:] = part, np.minimum(np.arange(rows), count - 1)
            call.run()
            parts.append(call.outputs["hidden"][0, :count].copy())
        return np.concatenate(parts)


def _growing(grown: Sequence[tuple[Wish, GrowingTree]], deeper: Deeper) -> list[tuple[Wish, GrowingTree]]:
    """Those that get another level."""
    able = [(wish, tree) for wish, tree in grown if tree.level < wish.spec.depth]
    shared = [each for each in able if each[0].history is not None]
    more = {id(tree) for (_, tree), wanted in zip(shared, deeper(shared) if shared else (), strict=True) if wanted}
    return [
        (wish, tree)
        for wish, tree in able
        if (id(tree) in more if wish.history is not None else wish.growth is None or wish.growth.should_expand(tree.partial))
    ]
