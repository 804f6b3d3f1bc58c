"""The policies by name. A new one is a module in policy/ and one entry here: what commands, server and tuner offer comes from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy import Net, Policy, TreeSpec

    from ..manifest.tuning import LearnedPolicy, Tuning


@dataclass(frozen=True)
class PolicySetting:
    """What a policy is made from. ``tuning``: what resps-tune found, where it holds here; ``tree``: the fixed tree; ``sizes``: numbers of
    nodes that may be verified, where not every number may; ``load``: a graph's name -> its network."""

    tuning: Tuning | None
    tree: TreeSpec
    sizes: tuple[int, ...] | None
    load: Callable[[str], Net]


@dataclass(frozen=True)
class PolicyKind:
    """One policy. ``label``: its name in tables. ``make`` returns None where it has not been tuned; ``learned``: resps-tune trains it;
    ``variant``: it does so only when asked to, to compare as the papers do."""

    name: str
    label: str
    summary: str
    make: Callable[[str, PolicySetting], Policy | None]
    learned: bool = False
    variant: bool = False


def _none(name: str, setting: PolicySetting) -> Policy:
    from policy import PLAIN, FixedPolicy

    return FixedPolicy(PLAIN)


def _fixed(name: str, setting: PolicySetting) -> Policy:
    from policy import FixedPolicy

    return FixedPolicy(setting.tree)


def _cost_model(name: str, setting: PolicySetting) -> Policy | None:
    from policy import CostModel, watch

    tuning = setting.tuning
    if tuning is None or tuning.cost_model is None:
        return None
    return watch(CostModel(tuning.cost_model, tuning.latency, setting.sizes), setting.tree, tuning.latency)


def _learned(name: str, setting: PolicySetting) -> Policy | None:
    from policy import watch

    tuning = setting.tuning
    if tuning is None or name not in tuning.learned:
        return None
    return watch(learned_policy(tuning.learned[name], setting.load), setting.tree, tuning.latency)


def learned_policy(found: LearnedPolicy, load: Callable[[str], Net]) -> Policy:
    """The policy over its networks, without a watchdog."""
    from policy import ActionPersistence, Ltd, Resps
    from policy.inputs import resps_state

    resps = None
    if slow := found.slow:
        resps = ActionPersistence(Resps(load(slow.net.graph), slow.actions, slow.margin, state=resps_state(slow.net.inputs)), slow.hold)
    if found.fast is None:
        assert resps is not None
        return resps
    fast = found.fast
    depth, size = (load(net.graph) if net else None for net in (fast.depth, fast.size))
    return Ltd(depth, size, fast.tree, fast.every, fast.sizes, resps)


_KINDS = (
    PolicyKind("none", "plain decoding", "no speculation", _none),
    PolicyKind("fixed", "fixed tree", "always the same tree", _fixed),
    PolicyKind("cost-model", "cost model", "weighs expected tokens against measured latency while the tree grows", _cost_model),
    PolicyKind("resps", "Re-SpS", "a network picks the tree from the target's hidden state", _learned, learned=True),
    PolicyKind("ltd", "LTD", "networks stop the tree's growth and pick its size", _learned, learned=True),
    PolicyKind("resps+ltd", "Re-SpS and LTD", "LTD within the tree that Re-SpS picks", _learned, learned=True),
    PolicyKind("resps-max-entropy", "Re-SpS, max-entropy", "Re-SpS trained with an entropy bonus", _learned, learned=True, variant=True),
    PolicyKind("resps-average", "Re-SpS, average", "Re-SpS over the mean of the captured states", _learned, learned=True, variant=True),
    PolicyKind("ltd-depth", "LTD, depth", "LTD's depth network alone", _learned, learned=True, variant=True),
    PolicyKind("ltd-size", "LTD, size", "LTD's size network alone", _learned, learned=True, variant=True),
    PolicyKind("ltd-both", "LTD, both", "LTD's depth and size networks", _learned, learned=True, variant=True),
)
POLICIES = {kind.name: kind for kind in _KINDS}


def main_policies() -> tuple[str, ...]:
    """Names of all but the variants."""
    return tuple(name for name, kind in POLICIES.items() if not kind.variant)
