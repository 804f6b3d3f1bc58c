"""A learned policy between training and service: its networks in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policy import Policy, inputs
from policy.resps import HOLD, Action
from runtime.manifest.tuning import LearnedPolicy, LtdConfig, Network, RespsConfig
from runtime.policies.registry import learned_policy

from .nets import Mlp

EVERY = 1  # levels between two questions to LTD's depth network; the paper's code asks at every third


@dataclass(frozen=True)
class Trained:
    """``slow``: Re-SpS' network, of ``actions``, which sees ``state``; ``depth`` and ``size``: LTD's, for trees up to ``tree`` and
    ``sizes`` to choose from. Either may be missing, not both."""

    slow: Mlp | None = None
    actions: tuple[Action, ...] = ()
    state: str = "features"
    depth: Mlp | None = None
    size: Mlp | None = None
    tree: Action = (1, 0, 0)
    sizes: tuple[int, ...] = ()

    def policy(self) -> Policy:
        """As in service."""
        nets = {graph_name("trained", role): net for role, net in self.nets()}
        return learned_policy(self.described("trained"), nets.__getitem__)

    def nets(self) -> Iterator[tuple[str, Mlp]]:
        """(role, network) of each."""
        for role, net in (("slow", self.slow), ("depth", self.depth), ("size", self.size)):
            if net:
                yield role, net

    def described(self, name: str) -> LearnedPolicy:
        """The manifest's entry; graphs are called after policy and role."""
        reads = {"slow": inputs.RESPS[self.state], "depth": inputs.LTD_DEPTH, "size": inputs.LTD_SIZE}
        nets = {role: Network(graph_name(name, role), reads[role], inputs.VERSION) for role, _ in self.nets()}
        chooser = RespsConfig(nets["slow"], self.actions, HOLD, 0.0) if self.slow else None
        fast = LtdConfig(nets.get("depth"), nets.get("size"), self.tree, EVERY, self.sizes) if self.depth or self.size else None
        return LearnedPolicy(chooser, fast)


def graph_name(policy: str, role: str) -> str:
    """Of a network among the tuned graphs."""
    return f"{policy}.{role}"
