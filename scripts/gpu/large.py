"""A Llama-3-8B-shaped target and draft with random weights: times of passes, draft steps, host work and profile switches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.backends.cuda.driver import Cuda
from runtime.decoding.tree import Tree
from runtime.drafters.eagle import EagleDrafter
from scripts.gpu.demo import export
from scripts.gpu.environment import bandwidth
from scripts.gpu.random_model import LLAMA3_8B, RandomShape, write_model

CONTEXT, PAST, TIMES = 4096, 512, 50
TREES = (TreeSpec(8, 4, 4), TreeSpec(16, 5, 8), TreeSpec(32, 7, 8), TreeSpec(64, 8, 10))


def large(work: Path, layers: int, precision: str, shape: RandomShape = LLAMA3_8B) -> dict[str, Any]:
    """Milliseconds are medians of GPU time between two events in the stream, or of wall time where the name says so."""
    weights, name = work / f"weights-{layers}", f"engines-{layers}-{precision}"
    if not (weights / "draft").is_dir():
        write_model(weights, shape, layers)
    started = time.perf_counter()
    sources = ["--weights", str(weights / "target"), "--draft-weights", str(weights / "draft")]
    built_as = ["--backend", "tensorrt", "--precision", precision, "--max-context", str(CONTEXT)]
    export(*sources, *built_as, "--out", str(work), "--name", name)
    built = time.perf_counter() - started
    started = time.perf_counter()
    with Decoder(work / name, policy=FixedPolicy(TREES[2])) as decoder:
        loaded = time.perf_counter() - started
        return {"export_seconds": round(built), "load_seconds": round(loaded), **measure(decoder)}


def measure(decoder: Decoder) -> dict[str, Any]:
    """All measurements of one engine directory."""
    cuda = Cuda()
    speed = bandwidth(cuda)
    cuda.close()
    target, manifest = decoder.models.target, decoder.manifest
    stream = target._memory._cuda  # type: ignore[attr-defined]
    target.cache.truncate(0)
    list(target.prefill([7] * PAST))
    passes = {size: _gpu_ms(stream, lambda size=size: target._run(Tree.chain([7] * size))) for size in manifest.tree_sizes}  # type: ignore[misc]
    walls = {size: _wall_ms(lambda size=size: target.verify(Tree.chain([7] * size))) for size in manifest.tree_sizes}  # type: ignore[misc]
    weights = manifest.files["target.plan"].bytes
    plain = passes[min(passes)]
    floor = weights / speed / 1e9
    return {
        "gpu": stream.gpu().name,
        "copy_tb_s": speed,
        "target_plan_gb": round(weights / 1e9, 2),
        "floor_ms": round(floor, 3),
        "floor_ms_at_4.8_tb_s": round(weights / 4.8e9, 3),
        "pass_ms": {str(size): round(value, 3) for size, value in passes.items()},
        "pass_wall_ms": {str(size): round(value, 3) for size, value in walls.items()},
        "pass_32_over_plain": round(passes[32] / plain, 3) if 32 in passes else None,
        "plain_over_floor": round(plain / floor, 3),
        "prefill_chunk_ms": round(_gpu_ms(stream, lambda: target._run_chunk([7] * manifest.limits.prefill_rows)), 3),
        "profile_switch_ms": _switch_ms(decoder, stream, passes),
        "drafting": _drafting(decoder, stream),
        "cycles": {str(spec): _cycle(decoder, stream, spec) for spec in (PLAIN, *TREES) if spec.nodes in manifest.tree_sizes},
    }


def _gpu_ms(stream: Any, work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(TIMES):
        start = stream.record_event()
        work()
        times.append(stream.elapsed_ms(start, stream.record_event()))
    return statistics.median(times)


def _wall_ms(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(TIMES):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def _switch_ms(decoder: Decoder, stream: Any, passes: dict[int, float]) -> float:
    """How much longer two passes of different profiles take if they alternate than if each is repeated."""
    sizes = sorted(passes)[-1], sorted(passes)[0]

    def both() -> None:
        for size in sizes:
            decoder.models.target._run(Tree.chain([7] * size))

    return round(_gpu_ms(stream, both) - sum(passes[size] for size in sizes), 4)


def _drafting(decoder: Decoder, stream: Any) -> dict[str, Any]:
    """Time of a whole tree by width and depth, the commit of one round included; ``step_ms``: time of one level."""
    drafter = decoder.models.drafter
    if not isinstance(drafter, EagleDrafter):
        return {"error": "the directory has no draft"}
    report: dict[str, Any] = {}
    for width in (4, 8, 10):
        trees = {}
        for depth in (1, 2, 4, 8):
            spec = TreeSpec(min(32, TreeSpec(1, depth, width).capacity), depth, width)

            def grow(spec: TreeSpec = spec) -> None:
                drafter._fuse([7] * 3, range(3))
                drafter.draft(7, spec)

            drafter.begin()
            drafter._fuse([7] * 64, range(64))
            trees[depth] = _gpu_ms(stream, grow)
        step = (trees[8] - trees[4]) / 4
        report[str(width)] = {"tree_ms": {str(depth): round(value, 3) for depth, value in trees.items()}, "step_ms": round(step, 3)}
    return report


def _cycle(decoder: Decoder, stream: Any, spec: TreeSpec) -> dict[str, float]:
    """Wall time of a cycle in a real answer, GPU time of the same work, and their difference: host work and launch gaps."""
    prompt = [7, 11, 13] * 100
    for _ in range(2):
        with decoder.stream(prompt, SamplingParams(max_new_tokens=400), policy=FixedPolicy(spec)) as chunks:
            next(chunks)
            start, started = stream.record_event(), time.perf_counter()
            stats = chunks.result().stats
            wall = 1000 * (time.perf_counter() - started)
            stream.elapsed_ms(start, stream.record_event())
    busy = _busy_ms(decoder, stream, spec)
    return {"wall_ms": round(wall / stats.cycles, 3), "busy_ms": round(busy, 3), "gap_ms": round(wall / stats.cycles - busy, 3)}


def _busy_ms(decoder: Decoder, stream: Any, spec: TreeSpec) -> float:
    """GPU time of a cycle's work if all of it is enqueued at once, without waiting for the host."""
    target, drafter = decoder.models.target, decoder.models.drafter
    target.cache.truncate(0)
    list(target.prefill([7] * PAST))
    drafter.begin()
    grows = isinstance(drafter, EagleDrafter) and spec.nodes > 1
    if grows:
        drafter._fuse([7] * 64, range(64))  # type: ignore[attr-defined]

    def work() -> None:
        if grows:
            drafter._fuse([7], [0])  # type: ignore[attr-defined]
            drafter.draft(7, spec)
        target._run(Tree.chain([7] * spec.nodes))

    return _gpu_ms(stream, work)
