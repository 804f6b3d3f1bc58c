"""The entry of manifest.json that resps-tune writes: the measured latencies and the tuned policies, key for key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from policy import Calibration, LatencyModel
from policy.resps import Action

from .graphs import File, Graph


@dataclass(frozen=True)
class RespsConfig:
    """A tuned Re-SpS policy. ``graph``: its network. ``actions``: in the order of its logits. ``state``, ``margin``: as in
    `policy.resps.Resps`. ``hold``: rounds that an action persists."""

    graph: str
    actions: tuple[Action, ...]
    state: str
    hold: int
    margin: float


@dataclass(frozen=True)
class LtdConfig:
    """A tuned LTD policy. ``depth``, ``size``: the graphs of its networks, None if it has no such network. ``tree``, ``every``, ``sizes``:
    as in `policy.ltd.Ltd`."""

    depth: str | None
    size: str | None
    tree: Action
    every: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class LearnedPolicy:
    """A trained policy: Re-SpS (``slow``), LTD (``fast``), or LTD within the trees of Re-SpS (both)."""

    slow: RespsConfig | None
    fast: LtdConfig | None

    def nets(self) -> Iterator[tuple[str, int]]:
        """(graph, number of outputs) of each network."""
        if self.slow:
            yield self.slow.graph, len(self.slow.actions)
        if self.fast and self.fast.depth:
            yield self.fast.depth, 2
        if self.fast and self.fast.size:
            yield self.fast.size, len(self.fast.sizes)


@dataclass(frozen=True)
class Tuning:
    """The result of resps-tune for one engine, machine and number of threads.

    ``engine``: the manifest's engine_id. ``portable``: whether it came with the model and is valid on any machine (behind a watchdog) until
    resps-tune replaces it. ``policy``: the name of the fastest one. ``static``: the best fixed tree, which a watchdog falls back to.
    ``learned``: trained policies by name. ``ratios``: tokens/s of each policy over plain decoding, timed on held-out prompts. ``graphs``,
    ``files``: of the networks.
    """

    engine: str
    machine: str
    threads: int
    portable: bool
    policy: str
    static: Action
    cost_model: Calibration | None
    latency: LatencyModel
    learned: Mapping[str, LearnedPolicy]
    ratios: Mapping[str, float]
    graphs: Mapping[str, Graph]
    files: Mapping[str, File]
