"""How many lanes a Decoder has: as many as its memory bears and its cores can use, or as many as were asked for."""

from __future__ import annotations

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
    manifest: Manifest, asked: int | None, *, replicas: int, threads: int, draft: str | None = None, device: str | None = None
) -> int:
    """The lanes of each of ``replicas`` Decoders with this many ``threads``.

    ``asked``: [default: at most 8 and 4 for each thread, as many as fit into the memory; 1 for an engine without lanes]. ``draft``,
    ``device``: the Decoder's options. Raises ValueError if there is too little memory, EngineDirError if the engine has no lanes.
    """
    if asked == 1:
        return 1
    try:
        expect_lanes(manifest, device, _uses_draft(draft))
    except EngineDirError:
        if asked is None:
            return 1
        raise
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


def expect_lanes(manifest: Manifest, device: str | None, drafted: bool) -> None:
    """Raises EngineDirError if the engine has no graphs with lanes for ``device``. ``drafted``: whether the drafter needs the draft's."""
    if manifest.tensorrt is not None or device == "cuda":
        raise EngineDirError("several lanes run on the CPU only — use one lane, or forks, on a GPU")
    if not {"target_lanes", *(("draft_lanes",) if drafted and manifest.draft else ())} <= manifest.graphs.keys():
        raise EngineDirError(
            "the engine has no graphs for several lanes: it is older than they are, or its precision has none (docs/troubleshooting.md) — "
            f"rebuild it: {manifest.rebuild}"
        )


def lane_bytes(manifest: Manifest, draft: str | None = None) -> int:
    """Bytes of a lane's keys and values when the context is full, those of the draft model included if ``draft`` uses it."""
    size = _cache_bytes(manifest.shape, manifest.limits.capacity)
    if manifest.draft is not None and _uses_draft(draft):
        size += _cache_bytes(manifest.draft, draft_slots(manifest.limits, manifest.draft))
    return size


def draft_slots(limits: Limits, draft: Draft) -> int:
    """Slots of a lane's draft cache: the context, and rows that are not committed yet."""
    return draft.capacity + limits.prefill_rows + draft.max_width * draft.max_depth


def _uses_draft(draft: str | None) -> bool:
    return draft is None or DRAFTERS[draft].uses_draft_model


def _cache_bytes(model: TargetShape | Draft, slots: int) -> int:
    """Bytes of the pages for ``slots`` tokens' keys and values in float32."""
    return pages_of(slots) * PAGE_SLOTS * model.layers * 2 * model.kv_heads * model.head_dim * 4


def described(replicas: int, lanes: int, each: int) -> str:
    """How many requests run at once, for the line that a server prints at the start. ``each``: bytes of a lane."""
    places = "1 lane" if lanes == 1 else f"{lanes} lanes"
    places = places if replicas == 1 else f"{replicas} replicas of {places}"
    return f"{places}, up to {_mib(each)} MiB of cache{' each' if replicas * lanes > 1 else ''}"


def _mib(size: int) -> int:
    """Bytes in MiB, rounded up."""
    return -(-size >> 20)
