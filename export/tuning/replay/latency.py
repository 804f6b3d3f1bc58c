"""Measures the latency model on this machine: drafting by width and depth, verifying by rows and context, and the host's own work."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from time import perf_counter

import numpy as np

from policy import PLAIN, FixedPolicy, LatencyModel, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.start.benches import one_lane

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
SPANS = (128, 512, 1024, 2048, 4096)  # cache slots that a pass reads
LONG_SPAN, LONG_INTERVAL = 1024, 3  # longer spans are measured in every third repeat only, because filling the cache takes long
LEAST_REPEATS, MOST_REPEATS = 5, 15
ROUND_TOKENS = 96  # committed when whole rounds begin; they grow to about SPANS[0]


def measure_latency(
    decoder: Decoder,
    widths: Sequence[int],
    depths: Sequence[int],
    max_rows: int,
    deadline: float = inf,
    progress: Callable[[float], None] = lambda _: None,
) -> LatencyModel:
    """Medians of MOST_REPEATS measurements, in milliseconds; of fewer, but at least LEAST_REPEATS, if ``deadline`` (of perf_counter) comes
    first. Every repeat measures each point once, so that a slow moment of the machine affects all points alike. ``progress`` is called with
    the share done."""
    bench, limits = one_lane(decoder.models), decoder.manifest.limits
    sizes = decoder.manifest.tree_sizes if decoder.manifest.tensorrt else ROWS
    rows = tuple(count for count in sizes if count <= min(max_rows, limits.tree_nodes))
    spans = tuple(span for span in SPANS if span + max_rows < limits.context) or (limits.context - 1,)
    verify: dict[tuple[int, int], list[float]] = {(span, count): [] for span in spans for count in rows}
    draft: dict[tuple[int, int], list[float]] = {(width, depth): [] for width in widths for depth in depths}
    round_tree = TreeSpec(rows[min(3, len(rows) - 1)], min(2, depths[-1]), widths[-1])
    rounds: dict[TreeSpec, list[float]] = {PLAIN: [], round_tree: []}
    for repeat in range(MOST_REPEATS):
        if repeat >= LEAST_REPEATS and perf_counter() > deadline:
            break
        bench.fill(spans[:2][-1] - max_rows)
        warm = False
        for width, depth in draft:
            spec = TreeSpec(min(limits.tree_nodes, TreeSpec(1, depth, width).capacity), depth, width)
            if repeat == 0 or not warm:
                bench.draft_seconds(spec)  # binds buffers, reads the rest of the prompt
                warm = True
            draft[width, depth].append(1000 * bench.draft_seconds(spec))
        filled = 0
        for span in spans if repeat % LONG_INTERVAL == 0 else [span for span in spans if span <= LONG_SPAN] or spans:
            if filled:
                bench.extend(span - max_rows - filled)
            else:
                bench.fill(span - max_rows)
            filled = span - max_rows
            for count in rows:
                bench.verify(1, count)  # binds buffers, lays out caches
                verify[span, count].append(_milliseconds(partial(bench.verify, 1, count)))
        for spec, found in rounds.items():
            found.append(_round_ms(decoder, spec, min(ROUND_TOKENS, limits.context // 2)))
        progress((repeat + 1) / MOST_REPEATS)
    bench.fill(0)
    latency = LatencyModel(
        rows=rows,
        spans=spans,
        verify_ms=tuple(tuple(statistics.median(verify[span, count]) for count in rows) for span in spans),
        widths=tuple(widths),
        depths=tuple(depths),
        draft_ms=tuple(tuple(statistics.median(draft[width, depth]) for depth in depths) for width in widths),
        host_ms=_host_ms(decoder),
    )
    return as_in_rounds(latency, {spec: statistics.median(found) for spec, found in rounds.items()})


def as_in_rounds(latency: LatencyModel, rounds: Mapping[TreeSpec, float]) -> LatencyModel:
    """``latency``, such that it gives whole ``rounds`` what they took, in milliseconds: plain ones, and those with one tree. They were
    measured in the same repeats as the parts, so a busy machine slowed all of them down.

    A pass of one row is faster in plain decoding, where all passes are alike, than between other passes. What a tree's round takes beyond
    its parts is added to drafting, and what it takes less is taken from passes of several rows.
    """
    missing = {spec: found - latency.round_with(spec, ROUND_TOKENS) for spec, found in rounds.items()}
    plain, tree = missing.pop(PLAIN), next(iter(missing.values()))
    more = [plain if count == 1 else min(0.0, tree) for count in latency.rows]
    return replace(
        latency,
        verify_ms=tuple(tuple(cost + extra for cost, extra in zip(costs, more, strict=True)) for costs in latency.verify_ms),
        draft_ms=tuple(tuple(cost + max(0.0, tree) for cost in costs) for costs in latency.draft_ms),
    )


def _milliseconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)


def _host_ms(decoder: Decoder) -> float:
    """Milliseconds of a round of plain decoding outside drafting and verifying."""
    prompt = np.random.default_rng(0).integers(0, decoder.manifest.shape.vocab, 32).tolist()
    stats = decoder.generate(prompt, SamplingParams(max_new_tokens=64, ignore_eos=True), policy=FixedPolicy(PLAIN)).stats
    return 1000 * max(0.0, stats.decode_seconds - stats.draft_seconds - stats.verify_seconds) / max(1, stats.cycles)


def _round_ms(decoder: Decoder, spec: TreeSpec, length: int) -> float:
    """Milliseconds of a whole round with ``spec`` in an answer to ``length`` tokens, including acceptance, commit and waking threads."""
    prompt = np.random.default_rng(0).integers(0, decoder.manifest.shape.vocab, length).tolist()
    params = SamplingParams(max_new_tokens=32, ignore_eos=True, rounds=True)
    with decoder.stream(prompt, params, policy=FixedPolicy(spec)) as stream:
        found = [chunk.round for chunk in stream if chunk.round]
    drafted = [each.seconds for each in found if each.tree.source == "draft"]  # what a lookup's round takes says nothing of the tree
    return 1000 * statistics.mean(drafted or [each.seconds for each in found])
