"""Measures what rounds of several lanes cost on this machine: passes by lanes, rows and context, drafting by lanes, width and depth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from policy import PLAIN, FixedPolicy, LaneHistory, LanesLatency, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.backends.lane_cache import LaneCache
from runtime.decoding.tree import Tree
from runtime.drafters.growth import GrowingTree
from runtime.lanes.draft import DraftLane, LanesDraft, Wish
from runtime.lanes.target import LanePass, LanesTarget

LANES = (1, 2, 4, 8, 16)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of a pass
ROWS_OF_A_LANE = 8  # at most
SPANS = (128, 512)  # slots of a lane that a pass reads
LEAST_REPEATS, MOST_REPEATS = 3, 9
COMMITTED = 2  # tokens that a lane usually commits in a round
TOKEN = 7


@dataclass(frozen=True)
class _Bench:
    """A target, a draft and lanes whose caches hold the same number of tokens."""

    target: LanesTarget
    draft: LanesDraft
    caches: Sequence[LaneCache]
    drafts: Sequence[DraftLane]

    def fill(self, length: int) -> None:
        """Commit tokens until every lane holds ``length``."""
        for cache, own in zip(self.caches, self.drafts, strict=True):
            while (missing := min(length - cache.length, self.draft.chunk)) > 0:
                cache.reserve(length + ROWS_OF_A_LANE)
                found = self.target.read_chunk(cache, [TOKEN] * missing)
                self.target.commit([(cache, range(missing))])
                self.draft.extend(own, [TOKEN] * missing, found.output.features[:missing], read=True)

    def verify(self, lanes: int, rows: int) -> list[LanePass]:
        """A pass over ``rows`` rows of the first ``lanes`` lanes."""
        sizes = [rows // lanes + (at < rows % lanes) for at in range(lanes)]
        return self.target.verify([(cache, Tree.chain([TOKEN] * size)) for cache, size in zip(self.caches, sizes, strict=False)])

    def draft_seconds(self, lanes: int, width: int, depth: int) -> list[float]:
        """Seconds from the beginning to each level's end, right behind a pass, as in service."""
        found = self.verify(lanes, lanes * COMMITTED)
        own = self.drafts[:lanes]
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
        return marks


def measure_lanes(
    decoder: Decoder, widths: Sequence[int], depths: Sequence[int], deadline: float, progress: Callable[[float], None] = lambda _: None
) -> LanesLatency:
    """Medians of LEAST_REPEATS measurements or more, until ``deadline`` (of perf_counter). Every repeat measures each point once.

    ``decoder``: one with lanes, where no request runs. ``progress`` is called with the share done."""
    forest, limits = decoder.forest, decoder.manifest.limits
    assert forest is not None
    assert forest.draft is not None
    counts = tuple(count for count in LANES if count <= decoder.lanes)
    rows = tuple(count for count in ROWS if count <= ROWS_OF_A_LANE * decoder.lanes)
    spans = tuple(span for span in SPANS if span <= limits.context) or (limits.context,)
    depth = max(depths)
    caches = [LaneCache(forest.target.cache) for _ in range(decoder.lanes)]
    bench = _Bench(forest.target, forest.draft, caches, [DraftLane(LaneCache(forest.draft.cache)) for _ in caches])
    verify: dict[tuple[int, int, int], list[float]] = {}
    draft: dict[tuple[int, int], list[list[float]]] = {}
    points = [(count, row) for count in counts for row in rows if count <= row <= ROWS_OF_A_LANE * count]
    try:
        for number, span in enumerate(spans):
            bench.fill(span - 2 * ROWS_OF_A_LANE)  # no tree may lie on two pages
            end = perf_counter() + (deadline - perf_counter()) / (len(spans) - number)
            for repeat in range(1 + MOST_REPEATS):
                if repeat > LEAST_REPEATS and perf_counter() > end:
                    break
                _repeat(bench, span, points, counts, widths if number == 0 else (), depth, verify, draft, warm=repeat > 0)
                progress((number + repeat / (1 + MOST_REPEATS)) / len(spans))
    finally:
        for cache in (*caches, *(lane.cache for lane in bench.drafts)):
            cache.free(clear=True)
    table = {key: 1000 * statistics.median(values) for key, values in verify.items()}
    return LanesLatency(
        lanes=counts,
        rows=rows,
        spans=spans,
        verify_ms=tuple(tuple(_whole(table, span, count, rows) for count in counts) for span in spans),
        widths=tuple(widths),
        depths=tuple(range(1, depth + 1)),
        draft_ms=tuple(
            tuple(tuple(1000 * statistics.median(marks) for marks in zip(*draft[count, width], strict=True)) for width in widths)
            for count in counts
        ),
        host_ms=tuple(_host_ms(decoder, count) for count in (counts[-1], *counts))[1:],  # the first is warmer for the others
    )


def _repeat(
    bench: _Bench,
    span: int,
    points: Sequence[tuple[int, int]],
    counts: Sequence[int],
    widths: Sequence[int],
    depth: int,
    verify: dict[tuple[int, int, int], list[float]],
    draft: dict[tuple[int, int], list[list[float]]],
    warm: bool,
) -> None:
    """Measure each point once. Unless ``warm``, nothing is noted: buffers are made."""
    for count, row in points:
        started = perf_counter()
        bench.verify(count, row)
        if warm:
            verify.setdefault((span, count, row), []).append(perf_counter() - started)
    for count in counts:
        for width in widths:
            marks = bench.draft_seconds(count, width, depth)
            if warm:
                draft.setdefault((count, width), []).append(marks)


def _whole(table: dict[tuple[int, int, int], float], span: int, count: int, rows: Sequence[int]) -> tuple[float, ...]:
    """A line of ``verify_ms``: what was measured, and beyond it the last slope. A pass costs no more than one with more rows does: what was
    measured dearer met a slow moment of the machine."""
    known = [row for row in rows if (span, count, row) in table]
    costs = {row: min(table[span, count, more] for more in known if more >= row) for row in known}
    first, last = known[0], known[-1]
    slope = max(0.0, (costs[last] - costs[known[-2]]) / (last - known[-2])) if len(known) > 1 else 0.0
    return tuple(costs.get(row, costs[first] if row < first else costs[last] + slope * (row - last)) for row in rows)


def _host_ms(decoder: Decoder, lanes: int) -> float:
    """Milliseconds of a round of plain decoding outside the pass."""
    random = np.random.default_rng(0)
    prompts = random.integers(0, decoder.manifest.shape.vocab, (lanes, 16)).tolist()
    params = SamplingParams(max_new_tokens=24)
    streams = [decoder.stream(prompt, params, policy=FixedPolicy(PLAIN)) for prompt in prompts]
    stats = [stream.result().stats for stream in streams]
    decoder.forget()
    cycles = max(1, sum(each.cycles for each in stats))
    return 1000 * max(0.0, sum(each.decode_seconds - each.verify_seconds for each in stats)) / cycles
