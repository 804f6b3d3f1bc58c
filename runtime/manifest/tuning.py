"""The entry of manifest.json that resps-tune writes: the measured latencies and the tuned policies, key for key."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from policy import Calibration, LatencyModel, inputs
from policy.resps import Action

from .graphs import File, Graph

SAMPLED_FROM = 0.4
"""Temperature from which a request uses the tuning for sampled requests, which is made at a temperature of 1."""
FILE_PREFIX = "tuned-"  # of all files that a tuning puts into an engine directory; a hash of what is in the file follows


@dataclass(frozen=True)
class Network:
    """A trained network x [1, F] -> logits [1, A]. ``graph``: its name among the tuned graphs. ``inputs``: the groups of numbers that x is
    made of, in order, with the meaning they have in version ``inputs_version`` of policy/inputs.py."""

    graph: str
    inputs: tuple[str, ...]
    inputs_version: int


@dataclass(frozen=True)
class RespsConfig:
    """A tuned Re-SpS policy. ``actions``: in the order of the network's logits. ``margin``: as in `policy.resps.Resps`. ``hold``: rounds
    that an action persists."""

    net: Network
    actions: tuple[Action, ...]
    hold: int
    margin: float


@dataclass(frozen=True)
class LtdConfig:
    """A tuned LTD policy. ``depth``, ``size``: its networks, None if it has no such network. ``tree``, ``every``, ``sizes``: as in
    `policy.ltd.Ltd`."""

    depth: Network | None
    size: Network | None
    tree: Action
    every: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class LearnedPolicy:
    """A trained policy: Re-SpS (``slow``), LTD (``fast``), or LTD within the trees of Re-SpS (both)."""

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
class SampledTuning:
    """What differs in a tuning for requests with a temperature of SAMPLED_FROM or more, where the draft guesses worse: ``policy``,
    ``static``, ``cost_model``, ``ratios`` and ``intervals`` as in Tuning."""

    policy: str
    static: Action
    cost_model: Calibration
    ratios: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Tuning:
    """The result of resps-tune for one engine, machine and number of threads.

    ``engine``: the manifest's engine_id. ``portable``: whether it came with the model and is valid on any machine (behind a watchdog) until
    resps-tune replaces it. ``policy``: the name of the fastest one. ``static``: the best fixed tree, which a watchdog falls back to.
    ``rotated``: whether it was made with a target whose features are rotated. ``learned``: trained policies by name. ``ratios``: tokens/s
    of each policy over plain decoding, timed on held-out prompts. ``intervals``: of each policy over the best fixed tree, by the clock and
    recorded answers together, 95 %. ``graphs``, ``files``: of the networks. ``table``: the best fixed tree for each number of lanes from 1;
    empty if rounds of several lanes were not measured. ``sampled``: for sampled requests, None if it was not tuned for them.
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
    rotated: bool = False
    table: tuple[Action, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sampled: SampledTuning | None = None

    def for_temperature(self, temperature: float) -> Tuning:
        """The tuning for requests with this temperature."""
        found = self.sampled
        if found is None or temperature < SAMPLED_FROM:
            return self
        return replace(
            self, policy=found.policy, static=found.static, cost_model=found.cost_model, ratios=found.ratios, intervals=found.intervals
        )

    @property
    def reads_known_inputs(self) -> bool:
        """Whether this version's policies give every network what it was trained with."""
        nets = (each for learned in self.learned.values() for each in learned.nets())
        return all(net.inputs_version == inputs.VERSION and net.inputs in known for net, _, known in nets)
