"""What resps-tune found, as manifest.json keeps it, key for key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from policy import Calibration, LatencyModel

from .graphs import File, Graph

Tree = tuple[int, int, int]
"""(nodes, depth, width)"""


@dataclass(frozen=True)
class RespsConfig:
    """Re-SpS: ``graph`` names a tree of ``actions``, in the order of its logits, which is held for ``hold`` rounds. ``state``: what it sees
    (policy/resps.py); ``margin``: how far another logit must exceed the last choice's."""

    graph: str
    actions: tuple[Tree, ...]
    state: str
    hold: int
    margin: float


@dataclass(frozen=True)
class LtdConfig:
    """LTD: the graph ``depth`` is asked every ``every`` levels whether to go on, the graph ``size`` how many of ``sizes`` nodes to verify.
    ``tree``: the largest one, which says how their inputs are laid out."""

    depth: str | None
    size: str | None
    tree: Tree
    every: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class LearnedPolicy:
    """A trained policy: a slow choice, a fast one, or both."""

    slow: RespsConfig | None
    fast: LtdConfig | None

    def nets(self) -> Iterator[tuple[str, int]]:
        """(graph, outputs) of its networks."""
        if self.slow:
            yield self.slow.graph, len(self.slow.actions)
        if self.fast and self.fast.depth:
            yield self.fast.depth, 2
        if self.fast and self.fast.size:
            yield self.fast.size, len(self.fast.sizes)


@dataclass(frozen=True)
class Tuning:
    """Found for the ``machine`` and ``threads`` it ran on, with the engine of that id.

    ``portable``: came with the model and may be used on any machine (behind the watchdog) until resps-tune replaces it. ``policy``: name of
    the fastest; ``static``: the best fixed tree, also what is fallen back to; ``learned``: by policy name; ``ratios``: tokens/s over plain
    decoding on held-out prompts, by the clock; ``graphs`` and ``files``: the networks'.
    """

    engine: str
    machine: str
    threads: int
    portable: bool
    policy: str
    static: Tree
    cost_model: Calibration | None
    latency: LatencyModel
    learned: Mapping[str, LearnedPolicy]
    ratios: Mapping[str, float]
    graphs: Mapping[str, Graph]
    files: Mapping[str, File]
