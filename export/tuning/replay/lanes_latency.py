"""Measures what rounds of several lanes cost on this machine: passes by lanes, rows and context, drafting by lanes, width and depth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import accumulate
from time import perf_counter

import numpy as np

from policy import PLAIN, FixedPolicy, LanesLatency
from policy.latency import interpolate, padding
from runtime import Decoder, SamplingParams
from runtime.start.benches import ROWS_OF_A_LANE, SeveralLanes, several_lanes

LANES = (1, 2, 4, 8, 16)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of a pass
CHUNKS = (8, 32, 128)  # rows of a prompt
SPANS = (128, 512)  # slots of a lane that a pass reads
LEAST_REPEATS, MOST_REPEATS = 3, 9


def measure_lanes(
    decoder: Decoder, widths: Sequence[int], depths: Sequence[int], deadline: float, progress: Callable[[float], None] = lambda _: None
) -> LanesLatency:
    """Medians of LEAST_REPEATS measurements or more, until ``deadline`` (of perf_counter). Every repeat measures each point once.

    ``decoder``: one with lanes, where no request runs. ``progress`` is called with the share done."""
    forest, limits = decoder.forest, decoder.manifest.limits
    assert forest is not None
    counts = tuple(count for count in LANES if count <= decoder.lanes)
    rows = tuple(count for count in ROWS if count <= ROWS_OF_A_LANE * decoder.lanes)
    spans = tuple(span for span in SPANS if span <= limits.context) or (limits.context,)
    depth = max(depths)
    bench = several_lanes(forest, decoder.lanes)
    verify: dict[tuple[int, int, int], list[float]] = {}
    uneven: dict[int, list[float]] = {}
    draft: dict[tuple[int, int], list[list[float]]] = {}
    chunks = tuple(count for count in CHUNKS if count <= limits.prefill_rows) or (limits.prefill_rows,)
    reads: dict[tuple[int, int], list[float]] = {}
    points = [(count, row) for count in counts for row in rows if count <= row <= ROWS_OF_A_LANE * count]
    try:
        for number, span in enumerate(spans):
            bench.fill(span - 2 * ROWS_OF_A_LANE)  # no tree may lie on two pages
            end = perf_counter() + (deadline - perf_counter()) / (len(spans) - number)
            for repeat in range(1 + MOST_REPEATS):
                if repeat > LEAST_REPEATS and perf_counter() > end:
                    break
                warm = repeat > 0
                _repeat(bench, span, points, counts, widths if number == 0 else (), depth, verify, draft, warm)
                _repeat_uneven(bench, counts[-1], uneven.setdefault(span, []), warm)
                if number == 0:
                    _repeat_chunks(bench, chunks, reads, warm)
                progress((number + repeat / (1 + MOST_REPEATS)) / len(spans))
    finally:
        bench.free()
    table = {key: 1000 * statistics.median(values) for key, values in verify.items()}
    alone, beside = ([1000 * statistics.median(reads[others, count]) for count in chunks] for others in (0, 1))
    even = tuple(tuple(_whole(table, span, count, rows) for count in counts) for span in spans)
    places = [_place(uneven[span], rows, costs[-1], counts[-1]) for span, costs in zip(spans, even, strict=True)]
    return LanesLatency(
        lanes=counts,
        rows=rows,
        spans=spans,
        verify_ms=even,
        widths=tuple(widths),
        depths=tuple(range(1, depth + 1)),
        draft_ms=tuple(
            tuple(tuple(1000 * statistics.median(marks) for marks in zip(*draft[count, width], strict=True)) for width in widths)
            for count in counts
        ),
        host_ms=tuple(_host_ms(decoder, count) for count in (counts[-1], *counts))[1:],  # the first is warmer for the others
        chunks=chunks,
        chunk_ms=tuple(alone),
        beside_ms=tuple(max(0.0, ms - table[spans[0], 1, 1]) for ms in beside),
        place_ms=tuple(accumulate(places, max)),  # in a longer context it takes no less
    )


def _repeat(
    bench: SeveralLanes,
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
            marks = list(bench.drafts(count, width, depth).values())
            if warm:
                draft.setdefault((count, width), []).append(marks)


def _repeat_uneven(bench: SeveralLanes, lanes: int, seconds: list[float], warm: bool) -> None:
    started = perf_counter()
    bench.verify_uneven(lanes, ROWS_OF_A_LANE)
    if warm:
        seconds.append(perf_counter() - started)


def _place(uneven: Sequence[float], rows: Sequence[int], even: Sequence[float], lanes: int) -> float:
    """What a place takes that no row fills, in milliseconds. ``uneven``: seconds of passes with one large tree; ``even``: milliseconds of
    passes with as many rows a lane, for each of ``rows``."""
    count = lanes + ROWS_OF_A_LANE - 1
    more = 1000 * statistics.median(uneven) - interpolate(rows, even, count)
    return max(0.0, more) / max(1, padding(count, lanes, ROWS_OF_A_LANE))


def _repeat_chunks(bench: SeveralLanes, chunks: Sequence[int], reads: dict[tuple[int, int], list[float]], warm: bool) -> None:
    """The same for chunks of a prompt: alone, and beside another lane if the graph takes them."""
    for count in chunks:
        for others in (0, 1):
            started = perf_counter()
            bench.read(count, others if bench.target.takes_chunks else 0)
            if warm:
                reads.setdefault((others, count), []).append(perf_counter() - started)


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
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    streams = [decoder.stream(prompt, params, policy=FixedPolicy(PLAIN)) for prompt in prompts]
    stats = [stream.result().stats for stream in streams]
    decoder.forget()
    cycles = max(1, sum(each.cycles for each in stats))
    return 1000 * max(0.0, sum(each.decode_seconds - each.verify_seconds for each in stats)) / cycles
