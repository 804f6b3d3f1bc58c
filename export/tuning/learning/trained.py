"""A trained policy before it is installed: its networks in numpy and the settings that it runs with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policy import Policy, inputs
from policy.resps import PERSISTENCE, Action
from runtime.manifest.tuning import LearnedPolicy, LtdConfig, Network, RespsConfig
from runtime.policies.registry import learned_policy

from .nets import Mlp

DEPTH_INTERVAL = 1  # levels between two decisions of LTD's depth network; 3 in the paper's code


@dataclass(frozen=True)
class TrainedPolicy:
    """A Re-SpS policy (``slow``), an LTD policy (``depth``, ``size`` or both), or both together.

    slow: Re-SpS' network, which chooses from ``actions`` and reads ``state``. depth, size: LTD's networks. tree: the largest tree of LTD.
    sizes: numbers of nodes that the size network chooses from.
    """

    slow: Mlp | None = None
    actions: tuple[Action, ...] = ()
    state: str = "features"
    depth: Mlp | None = None
    size: Mlp | None = None
    tree: Action = (1, 0, 0)
    sizes: tuple[int, ...] = ()

    def runtime_policy(self) -> Policy:
        """The policy object that runs in service, over the numpy networks."""
        nets = {graph_name("trained", role): net for role, net in self.nets()}
        return learned_policy(self.manifest_entry("trained"), nets.__getitem__)

    def nets(self) -> Iterator[tuple[str, Mlp]]:
        """(role, network) of each network; the role is slow, depth or size."""
        for role, net in (("slow", self.slow), ("depth", self.depth), ("size", self.size)):
            if net:
                yield role, net

    def manifest_entry(self, name: str) -> LearnedPolicy:
        """The entry in the manifest for this policy under ``name``. Its graphs are named by `graph_name`."""
        reads = {"slow": inputs.RESPS[self.state], "depth": inputs.LTD_DEPTH, "size": inputs.LTD_SIZE}
        networks = {role: Network(graph_name(name, role), reads[role], inputs.VERSION) for role, _ in self.nets()}
        slow = RespsConfig(networks["slow"], self.actions, PERSISTENCE, 0.0) if self.slow else None
        ltd = LtdConfig(networks.get("depth"), networks.get("size"), self.tree, DEPTH_INTERVAL, self.sizes)
        return LearnedPolicy(slow, ltd if self.depth or self.size else None)


def graph_name(policy: str, role: str) -> str:
    """The name of a network's graph in the manifest."""
    return f"{policy}.{role}"
