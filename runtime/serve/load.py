"""From an engine directory to replicas, warm."""

from __future__ import annotations

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
            for each in decoders:
                each.warmup()
    except BaseException:
        for each in decoders:
            each.close()
        raise
    return decoders
