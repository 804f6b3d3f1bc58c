"""What a round costs on this machine: drafting by width and depth, verifying by rows and slots, and the host's own share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter

import numpy as np

from policy import FixedPolicy, Surface, TreeSpec
from runtime import Decoder
from runtime.eagle import EagleDrafter
from runtime.tree import Tree

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
SPANS = (128, 512, 1024, 2048, 4096)
COMMITTED = 2  # rows that a round usually commits


def measure(
    decoder: Decoder,
    widths: Sequence[int],
    depths: Sequence[int],
    most_rows: int,
    times: int = 15,
    progress: Callable[[float], None] = lambda _: None,
) -> Surface:
    """Medians of ``times`` turns; in every turn each point is measured once, so that a slow moment of the machine hits all of them."""
    target, drafter, limits = decoder.models.target, decoder.models.drafter, decoder.manifest.limits
    assert isinstance(drafter, EagleDrafter)
    sizes = decoder.manifest.tree_sizes if decoder.manifest.tensorrt else ROWS
    rows = tuple(count for count in sizes if count <= min(most_rows, limits.tree_nodes))
    spans = tuple(span for span in SPANS if span + most_rows < limits.context)
    verify: dict[tuple[int, int], list[float]] = {(span, count): [] for span in spans for count in rows}
    draft: dict[tuple[int, int], list[float]] = {(width, depth): [] for width in widths for depth in depths}
    for turn in range(times):
        target.cache.truncate(0)
        drafter.begin()
        for span in spans:
            for chunk, scores in target.prefill([7] * (span - most_rows - target.length)):
                drafter.extend(chunk, scores, range(len(chunk)))
            for count in rows:
                verify[span, count].append(_timed(partial(target.verify, Tree.chain([7] * count)), before=True))
        for width, depth in draft:
            spec = TreeSpec(min(limits.tree_nodes, TreeSpec(1, depth, width).capacity), depth, width)
            scores = target.verify(Tree.chain([7] * COMMITTED))
            if turn == 0:
                _drafted(drafter, spec, scores)  # binds buffers
                scores = target.verify(Tree.chain([7] * COMMITTED))
            # Right behind a pass, as in service: the target's weights have just driven the draft's out of the caches.
            draft[width, depth].append(_timed(partial(_drafted, drafter, spec, scores)))
        progress((turn + 1) / times)
    target.cache.truncate(0)
    drafter.begin()
    return Surface(
        rows=rows,
        spans=spans,
        verify_ms=tuple(tuple(statistics.median(verify[span, count]) for count in rows) for span in spans),
        widths=tuple(widths),
        depths=tuple(depths),
        draft_ms=tuple(tuple(statistics.median(draft[width, depth]) for depth in depths) for width in widths),
        host_ms=_host(decoder),
    )


def _drafted(drafter: EagleDrafter, spec: TreeSpec, scores: object) -> None:
    drafter.extend([7] * COMMITTED, scores, range(COMMITTED))  # type: ignore[arg-type]
    drafter.draft(7, spec)


def _timed(work: Callable[[], object], before: bool = False) -> float:
    """Milliseconds. ``before``: do it once untimed, so that buffers are bound and caches laid out."""
    if before:
        work()
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)


def _host(decoder: Decoder) -> float:
    """Milliseconds of a round outside drafting and verifying, the telling of drafted rows apart, which `draft` counts."""
    prompt = np.random.default_rng(0).integers(0, decoder.manifest.shape.vocab, 32).tolist()
    stats = decoder.generate(prompt, max_new_tokens=64, policy=FixedPolicy(TreeSpec(1, 0, 0))).stats
    return 1000 * max(0.0, stats.decode_seconds - stats.draft_seconds - stats.verify_seconds) / max(1, stats.cycles)
