"""From an engine directory to replicas, warm."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..decoder import Decoder


def load_replicas(engine_dir: Path, replicas: int, *, warm: bool = True, threads: int | None = None, **options: Any) -> list[Decoder]:
    """A Decoder and its forks: one copy of the weights. Several replicas compute with one thread each unless ``threads`` says otherwise.
    Raises EngineDirError."""
    first = Decoder(engine_dir, threads=threads or (1 if replicas > 1 else None), **options)
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
    """All at the same time, because that is how they will work: passes that run at once each need room of their own in ONNX Runtime's
    arenas (11 MiB for 128 rows of the demo model), which stays. Else all of it would come on the day when two long prompts meet. And
    twice: the first time ONNX Runtime takes a pass's room piece by piece and notes the sum, from the second time on it takes that at once,
    and what was left of the pieces is too small for it."""
    with ThreadPoolExecutor(len(decoders)) as threads:
        for _ in range(2):
            for warming in [threads.submit(each.warmup) for each in decoders]:
                warming.result()
