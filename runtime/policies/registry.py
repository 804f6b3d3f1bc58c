"""The registry of policies, from which commands, server and tuner take their choices. To add a policy, write a module in policy/ and add
one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy import CorrectedLatency, Net, Policy, RoundCosts, TreeSpec

    from ..manifest.tuning import LearnedPolicy, Tuning


COST_MODEL = "cost-model"


@dataclass(frozen=True)
class PolicyContext:
    """What a policy is built from. ``tuning``: the tuning that is valid here, or None. ``fixed_tree``: the best known one. ``sizes``: the
    allowed numbers of nodes, None if every number is. ``load``: the network of a graph, by the graph's name. ``lanes``: of the Decoder.
    ``costs``: what rounds cost; those of one request correct them."""

    tuning: Tuning | None
    fixed_tree: TreeSpec
    sizes: tuple[int, ...] | None
    load: Callable[[str], Net]
    lanes: int
    costs: CorrectedLatency

    def guarded(self, policy: Policy) -> Policy:
        """``policy``, which pauses where trees lose. Without a tuning nobody knows what they cost here, so it does not."""
        from policy import Guarded

        return Guarded(policy, self.costs) if self.tuning else policy

    @property
    def rounds(self) -> RoundCosts:
        """``costs`` for one request; of one that shares its passes with others, as they were measured."""
        from policy import CorrectedRounds

        return self.tuning.latency if self.tuning and self.lanes > 1 else CorrectedRounds(self.costs)


@dataclass(frozen=True)
class PolicyKind:
    """One policy. ``label``: its name in tables. ``make``: builds it, or returns None if it was not tuned. ``learned``: whether resps-tune
    trains it. ``variant``: whether it does so only on request, for comparisons as in the papers."""

    name: str
    label: str
    summary: str
    make: Callable[[str, PolicyContext], Policy | None]
    learned: bool = False
    variant: bool = False


def _none(name: str, context: PolicyContext) -> Policy:
    from policy import PLAIN, FixedPolicy

    return FixedPolicy(PLAIN)


def _fixed(name: str, context: PolicyContext) -> Policy:
    from policy import FixedPolicy

    return context.guarded(FixedPolicy(context.fixed_tree))  # also where that is plain decoding, which text lookup may interrupt


def _table(name: str, context: PolicyContext) -> Policy | None:
    from policy import TablePolicy, TreeSpec

    tuning = context.tuning
    return context.guarded(TablePolicy(tuple(TreeSpec(*tree) for tree in tuning.table))) if tuning and tuning.table else None


def _cost_model(name: str, context: PolicyContext) -> Policy | None:
    from policy import CostModel, watch

    tuning = context.tuning
    if tuning is None or tuning.cost_model is None:
        return None
    return watch(CostModel(tuning.cost_model, context.rounds, context.sizes), context.fixed_tree, context.rounds)


def _learned(name: str, context: PolicyContext) -> Policy | None:
    from policy import watch

    tuning = context.tuning
    if tuning is None or name not in tuning.learned:
        return None
    return watch(learned_policy(tuning.learned[name], context.load), context.fixed_tree, context.rounds)


def learned_policy(found: LearnedPolicy, load: Callable[[str], Net]) -> Policy:
    """A learned policy over its networks, without a watchdog. ``load``: as in PolicyContext."""
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
    PolicyKind("table", "table of trees", "the best tree for the number of running requests", _table),
    PolicyKind(COST_MODEL, "cost model", "weighs expected tokens against measured latency while the tree grows", _cost_model),
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
    """Names of all policies but the variants."""
    return tuple(name for name, kind in POLICIES.items() if not kind.variant)
