"""Loads an engine directory into several warmed-up replicas."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..backends.cpu.processor import usable_cores
from ..decoder import Decoder
from ..lanes.choose import choose_lanes
from ..manifest.load import find_engine_dir, read_manifest


def load_replicas(
    engine_dir: Path, replicas: int, lanes: int | None = None, *, warm: bool = True, threads: int | None = None, **options: Any
) -> list[Decoder]:
    """Load a Decoder and fork it: the replicas share one copy of the weights.

    ``lanes``: of one replica [default: as choose_lanes says]. ``threads``: of one replica [default: 1 for several replicas, else the
    Decoder's default]. ``options`` go to the Decoder. Raises EngineDirError, and ValueError if the memory is too small for ``lanes``.
    """
    threads, manifest = threads or (1 if replicas > 1 else None), read_manifest(find_engine_dir(engine_dir))
    place = {name: options.get(name) for name in ("draft", "device", "backend")}
    lanes = choose_lanes(manifest, lanes, replicas=replicas, threads=threads or usable_cores(), **place)
    first = Decoder(engine_dir, threads=threads, lanes=lanes, **options)
    decoders = [first]
    try:
        decoders += [first.fork() for _ in range(replicas - 1)]
        if warm:
            warm_up(decoders)
    except BaseException:
        for each in decoders:
            each.close()
        raise
    return decoders


def warm_up(decoders: Sequence[Decoder]) -> None:
    """Warm up all Decoders at the same time, twice.

    At the same time, because concurrent passes each need their own memory in ONNX Runtime's arena (11 MiB for 128 rows of the demo model),
    and the arena keeps it: otherwise the process would grow later, when two long prompts meet. Twice, because ONNX Runtime allocates a
    pass's memory piece by piece the first time and as one block from the second time on, and the freed pieces are too small for the block.
    """
    with ThreadPoolExecutor(len(decoders)) as threads:
        for _ in range(2):
            for warming in [threads.submit(each.warmup) for each in decoders]:
                warming.result()
