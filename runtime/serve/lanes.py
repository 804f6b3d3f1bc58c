"""How many lanes a server has: as many as its memory bears and its cores can use, or as many as were asked for."""

from __future__ import annotations

from ..backends.cpu.processor import usable_memory
from ..drafters.registry import DRAFTERS
from ..errors import EngineDirError
from ..manifest.schema import Draft, Manifest, TargetShape
from .errors import ServeError

DEFAULT_LANES = 8  # at most
LANES_OF_A_CORE = 4  # more rows than that cost a pass as much time as they save
PROCESS_BYTES = 512 << 20  # what a server needs beside weights and caches, for one prompt's pass among others
GRAPH, DRAFT_GRAPH = "target_lanes", "draft_lanes"  # of the manifest


def choose_lanes(
    manifest: Manifest, asked: int | None, *, replicas: int, threads: int, draft: str | None = None, device: str | None = None
) -> int:
    """The lanes of each of ``replicas`` Decoders with this many ``threads``.

    ``asked``: [default: at most 8 and 4 for each thread, as many as fit into the memory; 1 for an engine without lanes]. ``draft``,
    ``device``: the Decoder's options. Raises ServeError if there is too little memory, EngineDirError if the engine has no lanes.
    """
    on_cpu = manifest.tensorrt is None and device in (None, "cpu")
    graphs = {GRAPH} if _draft_of(manifest, draft) is None else {GRAPH, DRAFT_GRAPH}
    if asked == 1 or (asked is None and not (on_cpu and graphs <= manifest.graphs.keys())):
        return 1
    if not on_cpu:
        raise EngineDirError("this engine has no lanes on a GPU — leave --lanes out, or take more --replicas")
    if not graphs <= manifest.graphs.keys():
        raise EngineDirError(f"this engine was exported before there were lanes — leave --lanes out, or export again: {manifest.rebuild}")
    each, memory = lane_bytes(manifest, draft) * replicas, usable_memory()
    if memory is None:
        return asked or min(DEFAULT_LANES, LANES_OF_A_CORE * threads)
    free = max(0, memory - PROCESS_BYTES - sum(file.bytes for file in manifest.files.values()))
    fit = max(1, free // each)
    if asked is not None and asked > fit:
        raise ServeError(
            f"{asked} lanes need up to {_mib(asked * each)} MiB of cache, beside the engine this process may use {free >> 20} — at most "
            f"--lanes {fit} would fit"
        )
    return asked or min(DEFAULT_LANES, LANES_OF_A_CORE * threads, fit)


def lane_bytes(manifest: Manifest, draft: str | None = None) -> int:
    """Bytes of a lane's keys and values when the context is full, those of the draft model included if ``draft`` uses it."""
    model = _draft_of(manifest, draft)
    slots = manifest.limits.capacity * _slot_bytes(manifest.shape)
    return slots if model is None else slots + model.capacity * _slot_bytes(model)


def _draft_of(manifest: Manifest, draft: str | None) -> Draft | None:
    """The draft model, if the drafter ``draft`` uses it."""
    return manifest.draft if draft is None or DRAFTERS[draft].uses_draft_model else None


def _slot_bytes(model: TargetShape | Draft) -> int:
    """Bytes of one token's keys and values, in float32."""
    return model.layers * 2 * model.kv_heads * model.head_dim * 4


def described(replicas: int, lanes: int, each: int) -> str:
    """How many requests run at once, for the line that a server prints at the start. ``each``: bytes of a lane."""
    places = "1 lane" if lanes == 1 else f"{lanes} lanes"
    places = places if replicas == 1 else f"{replicas} replicas of {places}"
    return f"{places}, up to {_mib(each)} MiB of cache{' each' if replicas * lanes > 1 else ''}"


def _mib(size: int) -> int:
    """Bytes in MiB, rounded up."""
    return -(-size >> 20)
