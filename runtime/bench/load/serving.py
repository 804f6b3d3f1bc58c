"""Loads what is compared: pairs of replicas and lanes, with the drafts, policies and trees that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from policy import FixedPolicy, Policy, TreeSpec

from ...backends.cpu.processor import usable_cores
from ...console import usage_errors
from ...decoder import Decoder
from ..contenders import Contender, named_policies
from ..measure import warm_up
from .measure import Serving
from .record import LoadContender


def open_decoder(directory: Path, given: Mapping[str, Any], draft: str | None, lanes: int, threads: int) -> Decoder:
    """A Decoder with the command's options ``given``. Raises UsageError, EngineDirError."""
    more: dict[str, Any] = {"lanes": lanes} if lanes > 1 else {}
    with usage_errors():
        return Decoder(directory, draft=draft, backend=given["backend"], device=given["device"], threads=threads, **more)


def open_contenders(
    directory: Path, given: Mapping[str, Any], names: Sequence[str], trees: Sequence[TreeSpec], stack: ExitStack
) -> list[Serving]:
    """All combinations of the drafts, lanes, replicas, and policies or trees, warmed up. ``stack`` closes their Decoders. Contenders with
    the same draft, lanes and threads share Decoders. Raises UsageError, BenchError, EngineDirError, GpuMemoryError."""
    pools: dict[tuple[str | None, int, int], list[Decoder]] = {}
    contenders: list[Serving] = []
    drafts = tuple(dict.fromkeys(given["drafts"] or [None]))
    for draft in drafts:
        for lanes in given["lanes"] or [1]:
            for replicas in given["replicas"] or [1]:
                threads = given["threads"] or (1 if replicas > 1 else usable_cores())
                pool = pools.setdefault((draft, lanes, threads), [])
                while len(pool) < replicas:
                    pool.append(stack.enter_context(pool[0].fork() if pool else open_decoder(directory, given, draft, lanes, threads)))
                for label, policy in _policies(names, trees, pool[0]):
                    parts = (place_name(replicas, lanes), pool[0].draft if len(drafts) > 1 else None, label)
                    name = ", ".join(part for part in parts if part)
                    record = LoadContender(name, replicas, lanes, threads, pool[0].draft, label)
                    contenders.append(Serving(record, pool[:replicas], policy))
    for decoder in (decoder for pool in pools.values() for decoder in pool):
        decoder.warmup()
    for each in contenders:
        warm_up([Contender(each.record.name, decoder.policy(each.policy), decoder) for decoder in each.decoders])
    return contenders


def _policies(names: Sequence[str], trees: Sequence[TreeSpec], decoder: Decoder) -> Iterator[tuple[str | None, Policy | str | None]]:
    """Labels, and what ``stream`` is given: a name, so that every Decoder uses its own policy; a fixed tree; None for the default."""
    if not names and not trees:
        yield None, None
    for name, policy in named_policies(names, trees, decoder):
        yield name, policy if isinstance(policy, FixedPolicy) else name


def place_name(replicas: int, lanes: int) -> str:
    """How tables call a number of replicas and lanes."""
    if lanes == 1:
        return "1 replica" if replicas == 1 else f"{replicas} replicas"
    return f"{lanes} lanes" if replicas == 1 else f"{replicas} replicas of {lanes} lanes"
