"""What resps-tune found, as manifest.json keeps it, key for key."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from policy import Calibration, LatencyModel, inputs

from .graphs import File, Graph

FILE_PREFIX = "tuned-"  # of all files that a tuning puts into an engine directory; a hash of what is in the file follows

Tree = tuple[int, int, int]
"""(nodes, depth, width)"""


@dataclass(frozen=True)
class Network:
    """A trained network x [1, F] -> logits [1, A]. ``graph``: of the tuned ones; ``inputs``: the groups of numbers that x is made of, in
    order, as ``inputs_version`` of policy/inputs.py means them."""

    graph: str
    inputs: tuple[str, ...]
    inputs_version: int


@dataclass(frozen=True)
class RespsConfig:
    """Re-SpS: ``net`` chooses a tree of ``actions``, in the order of its logits, which is kept for ``hold`` rounds. ``margin``: how far
    another logit must exceed the last choice's."""

    net: Network
    actions: tuple[Tree, ...]
    hold: int
    margin: float


@dataclass(frozen=True)
class LtdConfig:
    """LTD: ``depth`` decides every ``every`` levels whether to go on, ``size`` how many of ``sizes`` nodes to verify. ``tree``: the largest
    one, which says how their inputs are laid out."""

    depth: Network | None
    size: Network | None
    tree: Tree
    every: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class LearnedPolicy:
    """A trained policy: a slow choice, a fast one, or both."""

    slow: RespsConfig | None
    fast: LtdConfig | None

    def nets(self) -> Iterator[tuple[Network, int, Collection[tuple[str, ...]]]]:
        """Its networks, each with the number of its outputs and the inputs that it may have."""
        if self.slow:
            yield self.slow.net, len(self.slow.actions), inputs.RESPS.values()
        if self.fast and self.fast.depth:
            yield self.fast.depth, 2, (inputs.LTD_DEPTH,)
        if self.fast and self.fast.size:
            yield self.fast.size, len(self.fast.sizes), (inputs.LTD_SIZE,)


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

    @property
    def reads_known_inputs(self) -> bool:
        """Whether this version's policies give every network what it was trained with."""
        nets = (each for learned in self.learned.values() for each in learned.nets())
        return all(net.inputs_version == inputs.VERSION and net.inputs in known for net, _, known in nets)
