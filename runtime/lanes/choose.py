"""How many lanes a Decoder has: as many as its memory bears and its cores can use, or as many as were asked for."""

from __future__ import annotations

from ..backends.base import dtype_of
from ..backends.cpu.paged_cache import pages_of
from ..backends.cpu.processor import usable_memory
from ..drafters.registry import DRAFTERS
from ..errors import EngineDirError
from ..manifest.graphs import PAGE_SLOTS
from ..manifest.schema import Draft, Limits, Manifest, TargetShape

DEFAULT_LANES = 8  # at most
LANES_OF_A_CORE = 4  # more rows than that cost a pass as much time as they save
PROCESS_BYTES = 512 << 20  # what a server needs beside weights and caches, for one prompt's pass among others


def choose_lanes(
    manifest: Manifest,
    asked: int | None,
    replicas: int,
    threads: int,
    draft: str | None = None,
    device: str | None = None,
    backend: str | None = None,
) -> int:
    """The lanes of each of ``replicas`` Decoders with this many ``threads``.

    ``asked``: [default: at most 8 and 4 for each thread, as many as fit into the memory; on a GPU as many as the plans have, at most 8;
    1 for an engine without lanes]. ``draft``, ``device``, ``backend``: the Decoder's options. Raises ValueError if there is too little
    memory, EngineDirError if the engine has no lanes. On a GPU the backend finds out whether there is memory.
    """
    if asked == 1:
        return 1
    try:
        expect_lanes(manifest, asked or 2, device, backend or manifest.backend, _uses_draft(draft))
    except EngineDirError:
        if asked is None:
            return 1
        raise
    if manifest.tensorrt is not None:
        return asked or min(DEFAULT_LANES, manifest.tensorrt.lanes)
    each, memory = lane_bytes(manifest, draft) * replicas, usable_memory()
    if memory is None:
        return asked or min(DEFAULT_LANES, LANES_OF_A_CORE * threads)
    free = max(0, memory - PROCESS_BYTES - sum(file.bytes for file in manifest.files.values()))
    fit = max(1, free // each)
    if asked is not None and asked > fit:
        raise ValueError(
            f"{asked} lanes need up to {_mib(asked * each)} MiB of cache, beside the engine this process may use {free >> 20} — at most "
            f"--lanes {fit} would fit"
        )
    return asked or min(DEFAULT_LANES, LANES_OF_A_CORE * threads, fit)


def expect_lanes(manifest: Manifest, lanes: int, device: str | None, backend: str, drafted: bool) -> None:
    """Raises EngineDirError if the engine has no graphs for so many lanes on ``device`` and ``backend``. ``drafted``: whether the drafter
    needs the draft's."""
    plans = manifest.tensorrt
    if (plans is not None or device == "cuda") and backend != "tensorrt":
        raise EngineDirError(
            "ONNX Runtime has several lanes on the CPU only — use one lane or --replicas, or export with --backend tensorrt"
        )
    if drafted and manifest.draft and manifest.draft.one_pass:
        raise EngineDirError(
            f"a {manifest.draft.one_pass.kind} draft has no graph for several lanes — use one lane or --replicas, or --draft ngram"
        )
    if not {"target_lanes", *(("draft_lanes",) if drafted and manifest.draft else ())} <= manifest.graphs.keys():
        if plans is not None:
            raise EngineDirError(f"the engine has no plans for several lanes — rebuild it: {manifest.rebuild} --lanes {lanes}")
        raise EngineDirError(
            "the engine has no graphs for several lanes: it is older than they are, or its precision has none (docs/troubleshooting.md) — "
            f"rebuild it: {manifest.rebuild}"
        )
    if plans is not None and lanes > plans.lanes:
        raise EngineDirError(
            f"the engine's plans have 1 to {plans.lanes} lanes, not {lanes} — use fewer, or --replicas, or export with --lanes {lanes}"
        )


def lane_bytes(manifest: Manifest, draft: str | None = None) -> int:
    """Bytes of a lane's keys and values when the context is full, those of the draft model included if ``draft`` uses it."""
    limits, plans = manifest.limits, manifest.tensorrt is not None
    size = _cache_bytes(manifest, "target", manifest.shape, limits.capacity)
    if manifest.draft is not None and _uses_draft(draft):
        slots = manifest.draft.capacity if plans else draft_slots(limits, manifest.draft)
        size += _cache_bytes(manifest, "draft", manifest.draft, slots)
    return size


def draft_slots(limits: Limits, draft: Draft) -> int:
    """Slots of a lane's draft cache: the context, and rows that are not committed yet."""
    return draft.capacity + limits.prefill_rows + draft.max_width * draft.max_depth


def _uses_draft(draft: str | None) -> bool:
    return draft is None or DRAFTERS[draft].uses_draft_model


def _cache_bytes(manifest: Manifest, graph: str, model: TargetShape | Draft, slots: int) -> int:
    """Bytes of ``slots`` tokens' keys and values: in pages of float32, or in one page of the plan's type."""
    if manifest.tensorrt is None:
        return pages_of(slots) * PAGE_SLOTS * model.layers * 2 * model.kv_heads * model.head_dim * 4
    width = dtype_of(manifest.graphs[graph].inputs["past.0.key"].dtype).itemsize
    return slots * model.layers * 2 * model.kv_heads * model.head_dim * width


def described(replicas: int, lanes: int, each: int, past_mib: int) -> str:
    """How many requests run at once, for the line that a server prints at the start. ``each``: bytes of a lane. ``past_mib``: MiB of past
    answers."""
    places = "1 lane" if lanes == 1 else f"{lanes} lanes"
    places = places if replicas == 1 else f"{replicas} replicas of {places}"
    kept = f", {past_mib} MiB of past answers" if past_mib else ""
    return f"{places}, up to {_mib(each)} MiB of cache{' each' if replicas * lanes > 1 else ''}{kept}"


def _mib(size: int) -> int:
    """Bytes in MiB, rounded up."""
    return -(-size >> 20)
