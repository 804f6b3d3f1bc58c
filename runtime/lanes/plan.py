"""Plans a round: every lane's tree. Lanes without a policy of their own share the row budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from policy import TreeSpec

from ..decoding.tree import DeviceTree, Tree
from ..drafters.suffix import SuffixDrafter
from ..manifest.schema import Limits
from .budget import RowBudget
from .draft import LanesDraft, Wish
from .growth import GrowingTree
from .lane import Lane
from .target import LanesTarget


@dataclass(frozen=True)
class Planned:
    """One lane's tree of a round. ``spec``: its bounds. ``predicted``: how many of its tokens the draft expects to be accepted; 0 if the
    row budget did not size it. ``chosen``: whether the lane's policy chose it, if it has one; a lookup's tree it did not."""

    lane: Lane
    tree: Tree
    spec: TreeSpec
    predicted: float = 0.0
    chosen: bool = True


@dataclass(frozen=True)
class _Offer:
    """A tree whose size the row budget chooses. ``probabilities``: of its candidates, to lie on the target's path. ``most``: its largest
    number of nodes. ``tree``: makes it with a number of nodes. ``drafted``: whether the draft made it; else its tokens were copied from
    earlier text."""

    lane: Lane
    probabilities: np.ndarray
    most: int
    spec: TreeSpec
    tree: Callable[[int], Tree]
    drafted: bool


@dataclass(frozen=True)
class Planner:
    """``bounds``: of the trees that the row budget sizes."""

    target: LanesTarget
    draft: LanesDraft | None
    limits: Limits
    budget: RowBudget
    bounds: TreeSpec

    def plan(self, lanes: Sequence[Lane]) -> list[Planned]:
        """The lanes' trees. All trees of the EAGLE-3 draft grow together."""
        planned, offers, wishes, wishing = [], [], [], []
        drafts = self.draft is not None and self.budget.drafts()
        for lane in lanes:
            assert lane.root is not None
            lookup = lane.own.lookup(lane.root, min(lane.room, self.limits.tree_nodes, lane.cache.room))
            if lookup is not None:
                spec = TreeSpec(len(lookup), len(lookup) - 1, 1)
                if lane.policy is None and isinstance(lane.own, SuffixDrafter):
                    offers.append(_Offer(lane, np.array(lane.own.probabilities), len(lookup), spec, _front_of(lookup), False))
                else:
                    planned.append(Planned(lane, lookup, spec, chosen=False))
                continue
            spec = lane.spec(min(self.limits.tree_nodes, self.target.max_nodes(lane.cache)), self.bounds)
            waiting = lane.draft is not None and bool(lane.draft.waiting_tokens)
            if waiting and spec.nodes > 1 and (drafts or lane.policy is not None):
                wishes.append(self._wish(lane, spec))
                wishing.append(lane)
            else:
                own = _on_host(lane.own.draft(lane.root, spec))
                planned.append(Planned(lane, own, spec if lane.policy else spec.within(len(own), spec.depth)))
        for lane, wish, tree in zip(wishing, wishes, self._grown(wishes), strict=True):
            if tree is None:
                planned.append(Planned(lane, Tree.chain([wish.root]), wish.spec))
            elif lane.policy is None:
                probabilities = np.minimum(self.budget.trust * np.exp(tree.scores), 1)
                offers.append(_Offer(lane, probabilities, wish.spec.nodes, wish.spec, tree.tree, True))
            else:
                nodes = wish.growth.num_nodes(tree.partial) if wish.growth else wish.spec.nodes
                planned.append(self._sized(lane, tree.tree(max(1, min(nodes, wish.spec.nodes, len(tree.scores) + 1))), wish.spec))
        return planned + self._shared(offers, [len(each.tree) for each in planned])

    def _wish(self, lane: Lane, spec: TreeSpec) -> Wish:
        assert self.draft is not None
        assert lane.draft is not None
        assert lane.root is not None
        width = min(spec.width, self.draft.max_width)
        clipped = TreeSpec(min(spec.nodes, TreeSpec(1, spec.depth, width).capacity), spec.depth, width)
        return Wish(lane.draft, lane.root, clipped.within(self.limits.tree_nodes, self.draft.max_depth), lane.growth)

    def _grown(self, wishes: Sequence[Wish]) -> Sequence[GrowingTree | None]:
        if not wishes or self.draft is None:
            return []
        started = perf_counter()
        trees = self.draft.draft(wishes)
        self.budget.observe_draft(perf_counter() - started)
        return trees or [None] * len(wishes)

    def _shared(self, offers: Sequence[_Offer], others: Sequence[int]) -> list[Planned]:
        """The trees that share the row budget; ``others`` are rows of each lane that does not."""
        if not offers:
            return []
        probabilities = [offer.probabilities for offer in offers]
        sizes = self.budget.nodes(probabilities, [each.most for each in offers], [each.drafted for each in offers], others)
        planned = []
        for offer, nodes in zip(offers, sizes, strict=True):
            spec = offer.spec.within(nodes, offer.spec.depth)
            if offer.drafted:
                predicted = float(np.sort(offer.probabilities)[::-1][: nodes - 1].sum())
                planned.append(self._sized(offer.lane, offer.tree(nodes), spec, predicted))
            else:
                assert isinstance(offer.lane.own, SuffixDrafter)
                offer.lane.own.shorten(nodes)
                planned.append(Planned(offer.lane, offer.tree(nodes), spec))
        return planned

    def _sized(self, lane: Lane, tree: Tree, spec: TreeSpec, predicted: float = 0.0) -> Planned:
        if isinstance(lane.own, SuffixDrafter):
            lane.own.drafted(tree, spec.width)
        return Planned(lane, tree, spec, predicted)


def _front_of(chain: Tree) -> Callable[[int], Tree]:
    return lambda nodes: Tree.chain(chain.tokens[:nodes].tolist())


def _on_host(tree: Tree | DeviceTree) -> Tree:
    assert isinstance(tree, Tree)  # no lane has a drafter that leaves its tree on a device
    return tree
