"""Traces of many answers at once: the lanes of a Decoder draft at the same position of as many answers, which is several times as fast."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from policy import TreeSpec
from runtime import Decoder
from runtime.backends.lane_cache import LaneCache
from runtime.drafters.growth import GrowingTree
from runtime.lanes.draft import DraftLane, LanesDraft, Wish

from .traces import Trace, match_path

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 128  # tokens of a prompt or an answer in one target pass


@dataclass
class _Lane:
    """One answer: ``tokens`` of prompt and answer, the target's ``features`` [n, F] at each of them but the last, and what was drafted."""

    prompt_tokens: int
    tokens: Sequence[int]
    features: np.ndarray
    draft: DraftLane
    rows: dict[int, list[tuple[np.ndarray, np.ndarray]]]

    @property
    def positions(self) -> int:
        return len(self.tokens) - self.prompt_tokens - 1

    def note(self, width: int, position: int, tree: GrowingTree, depth: int) -> None:
        """Keep a tree's scores and its path."""
        scores, tokens, parents = tree.pool
        following = self.tokens[self.prompt_tokens + position + 1 :][:depth]
        self.rows[width].append((scores[1:], match_path(tokens, parents, following, depth)))

    def trace(self, width: int, depth: int) -> Trace:
        scores, path = (np.stack(column) for column in zip(*self.rows[width], strict=True))
        levels = np.concatenate([np.full(width if level == 0 else width**2, level + 1, np.int8) for level in range(depth)])
        before = self.prompt_tokens - 1
        features = self.features[before : before + self.positions].astype(np.float16)
        return Trace(self.prompt_tokens, width, scores, levels, path, features)


def trace_answers(
    decoder: Decoder, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], depth: int, widths: Sequence[int]
) -> list[dict[int, Trace]]:
    """The traces of each answer by width, as `traces.trace_answer` finds them one by one. ``decoder``: one with as many lanes as there are
    answers or more, where no request runs. Raises ValueError without an EAGLE-3 draft, and for an answer of fewer than two tokens."""
    forest = decoder.forest
    if forest is None or forest.draft is None:
        raise ValueError("traces need an EAGLE-3 draft and several lanes")
    if any(len(answer) < 2 for answer in answers):
        raise ValueError("an answer is too short")
    draft = forest.draft
    lanes: list[_Lane] = []
    try:
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = [*prompt, *answer]
            own = DraftLane(LaneCache(draft.cache))
            lanes.append(_Lane(len(prompt), tokens, _features(decoder, tokens[:-1]), own, {width: [] for width in widths}))
            draft.extend(own, prompt, lanes[-1].features[: len(prompt)], read=True)
        for position in range(max(lane.positions for lane in lanes)):
            running = [lane for lane in lanes if position < lane.positions]
            for width in widths:
                with _kept(draft, [lane.draft for lane in running], last=width == widths[-1]):
                    spec = TreeSpec(TreeSpec(1, depth, width).capacity, depth, width)
                    wishes = [Wish(lane.draft, lane.tokens[lane.prompt_tokens + position], spec) for lane in running]
                    trees = draft.draft(wishes, lambda _: ())
                    if trees is None:
                        raise ValueError("the draft failed")
                    for lane, tree in zip(running, trees, strict=True):
                        lane.note(width, position, tree, depth)
            for lane in running:
                at = lane.prompt_tokens + position
                draft.extend(lane.draft, lane.tokens[at : at + 1], lane.features[at : at + 1], read=True)
    finally:
        for lane in lanes:
            lane.draft.cache.free(clear=True)
    return [{width: lane.trace(width, depth) for width in widths} for lane in lanes]


@contextmanager
def _kept(draft: LanesDraft, lanes: Sequence[DraftLane], last: bool) -> Iterator[None]:
    """Unless it is the last drafting at a position, what it read waits again afterwards."""
    before = [(lane.cache.length, lane.whole, list(lane.waiting_tokens), list(lane.waiting_features)) for lane in lanes]
    yield
    if not last:
        for lane, (slots, whole, tokens, features) in zip(lanes, before, strict=True):
            lane.cache.length, lane.whole = slots, whole
            lane.waiting_tokens[:], lane.waiting_features[:] = tokens, features


def _features(decoder: Decoder, tokens: Sequence[int]) -> np.ndarray:
    """The target's captured features [n, F] at each of ``tokens``."""
    assert decoder.forest is not None
    target, found = decoder.forest.target, []
    cache = LaneCache(target.cache)
    try:
        cache.begin(len(tokens))
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            found.append(target.read_chunk(cache, chunk).output.features.copy())
            target.commit([(cache, range(len(chunk)))])
    finally:
        cache.free(clear=True)
    return np.concatenate(found)
