"""What a round costs on this machine: drafting by width and depth, verifying by rows and slots, and the host's own share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np

from policy import FixedPolicy, LatencyModel, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.decoding.sampling import TargetOutput
from runtime.decoding.target import Target
from runtime.decoding.tree import Tree
from runtime.drafters.eagle import EagleDrafter

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
SPANS = (128, 512, 1024, 2048, 4096)
LONG, LONG_TURNS = 1024, 3  # spans beyond that are measured every third turn: filling the cache takes its time
PROMPT = 32  # tokens
COMMITTED = 2  # rows that a round usually commits


def measure(
    decoder: Decoder,
    widths: Sequence[int],
    depths: Sequence[int],
    most_rows: int,
    times: int = 15,
    progress: Callable[[float], None] = lambda _: None,
) -> LatencyModel:
    """Medians of ``times`` turns; in every turn each point is measured once, so that a slow moment of the machine hits all of them."""
    target, drafter, limits = decoder.models.target, decoder.models.eagle, decoder.manifest.limits
    assert drafter is not None
    sizes = decoder.manifest.tree_sizes if decoder.manifest.tensorrt else ROWS
    rows = tuple(count for count in sizes if count <= min(most_rows, limits.tree_nodes))
    spans = tuple(span for span in SPANS if span + most_rows < limits.context) or (limits.context - 1,)
    verify: dict[tuple[int, int], list[float]] = {(span, count): [] for span in spans for count in rows}
    draft: dict[tuple[int, int], list[float]] = {(width, depth): [] for width in widths for depth in depths}
    some = TreeSpec(rows[min(3, len(rows) - 1)], min(2, depths[-1]), widths[-1])
    whole: list[float] = []
    for turn in range(times):
        _filled(target, drafter, 0, spans[:2][-1] - most_rows)
        at_work = False
        for width, depth in draft:
            spec = TreeSpec(min(limits.tree_nodes, TreeSpec(1, depth, width).capacity), depth, width)
            if turn == 0 or not at_work:
                _drafted(drafter, spec, target.verify(Tree.chain([7] * COMMITTED)))  # binds buffers, reads the rest of the prompt
                at_work = True
            # Right behind a pass, as in service: the target's weights have just driven the draft's out of the caches.
            scores = target.verify(Tree.chain([7] * COMMITTED))
            draft[width, depth].append(_timed(partial(_drafted, drafter, spec, scores)))
        at = 0
        for span in spans if turn % LONG_TURNS == 0 else [span for span in spans if span <= LONG] or spans:
            at = _filled(target, drafter, at, span - most_rows)
            for count in rows:
                target.verify(Tree.chain([7] * count))  # binds buffers, lays out caches
                verify[span, count].append(_timed(partial(target.verify, Tree.chain([7] * count))))
        whole.append(_whole_round(decoder, some))
        progress((turn + 1) / times)
    target.cache.truncate(0)
    drafter.begin()
    latency = LatencyModel(
        rows=rows,
        spans=spans,
        verify_ms=tuple(tuple(statistics.median(verify[span, count]) for count in rows) for span in spans),
        widths=tuple(widths),
        depths=tuple(depths),
        draft_ms=tuple(tuple(statistics.median(draft[width, depth]) for depth in depths) for width in widths),
        host_ms=_host(decoder),
    )
    # The parts were measured in turn with the whole, so a machine that was busy was so for both.
    missing = max(0.0, statistics.median(whole) - latency.round_with(some, PROMPT))
    return replace(latency, draft_ms=tuple(tuple(cost + missing for cost in costs) for costs in latency.draft_ms))


def _drafted(drafter: EagleDrafter, spec: TreeSpec, output: TargetOutput) -> None:
    drafter.extend([7] * COMMITTED, output, range(COMMITTED))
    drafter.draft(7, spec)


def _filled(target: Target, drafter: EagleDrafter, start: int, length: int) -> int:
    """Commit tokens up to ``length`` behind ``start``, which is 0 for an empty cache; returns ``length``."""
    if start == 0:
        target.cache.truncate(0)
        drafter.begin()
    for chunk, scores in target.prefill([7] * (length - start)):
        drafter.extend(chunk, scores, range(len(chunk)))
    return length


def _timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)


def _host(decoder: Decoder) -> float:
    """Milliseconds of a round outside drafting and verifying, the telling of drafted rows apart, which `draft` counts."""
    prompt = np.random.default_rng(0).integers(0, decoder.manifest.shape.vocab, 32).tolist()
    stats = decoder.generate(prompt, SamplingParams(max_new_tokens=64), policy=FixedPolicy(TreeSpec(1, 0, 0))).stats
    return 1000 * max(0.0, stats.decode_seconds - stats.draft_seconds - stats.verify_seconds) / max(1, stats.cycles)


def _whole_round(decoder: Decoder, spec: TreeSpec) -> float:
    """Milliseconds of a round with ``spec`` in service: with accepting, committing, threads that wake up."""
    prompt = np.random.default_rng(0).integers(0, decoder.manifest.shape.vocab, PROMPT).tolist()
    stats = decoder.generate(prompt, SamplingParams(max_new_tokens=32), policy=FixedPolicy(spec)).stats
    return 1000 * stats.decode_seconds / max(1, stats.cycles)
