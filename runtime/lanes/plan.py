"""Plans a round: every lane's tree. Lanes without a policy of their own share the row budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from policy import RowBudget, TreeSpec

from ..constraints.drafter import allowed_part
from ..decoding.tree import DeviceTree, Tree
from ..drafters.growth import GrowingTree
from ..drafters.suffix import SuffixDrafter
from ..manifest.schema import Limits
from .draft import LanesDraft, Wish
from .lane import Lane
from .target import LanesTarget


@dataclass(frozen=True)
class Planned:
    """One lane's tree of a round. ``spec``: its bounds. ``promised``: how many of its tokens the draft expects to be accepted; None if the
    row budget did not size it. ``chosen``: whether the lane's policy chose it, if it has one; a lookup's tree it did not."""

    lane: Lane
    tree: Tree
    spec: TreeSpec
    promised: float | None = None
    chosen: bool = True


@dataclass(frozen=True)
class _Offer:
    """A tree whose size the row budget chooses. ``probabilities``: of its candidates, to lie on the target's path. ``most``: its largest
    number of nodes. ``tree``: makes it with a number of nodes. ``promised``: the draft's own probabilities, the likeliest first; None if
    its tokens were copied from earlier text."""

    lane: Lane
    probabilities: np.ndarray
    most: int
    spec: TreeSpec
    tree: Callable[[int], Tree]
    promised: np.ndarray | None


@dataclass(frozen=True)
class Planner:
    """``bounds``: of the trees that the row budget sizes."""

    target: LanesTarget
    draft: LanesDraft | None
    limits: Limits
    budget: RowBudget
    bounds: TreeSpec

    def plan(self, lanes: Sequence[Lane], waiting: int, beside: int = 0) -> list[Planned]:
        """The lanes' trees. All trees of the EAGLE-3 draft grow together. ``waiting``: requests that do not decode yet. ``beside``: rows of
        a prompt in the same pass."""
        self.budget.begin_round(len(lanes), sum(lane.cache.length for lane in lanes) / len(lanes), beside)
        planned, offers = [], []
        able: list[tuple[Lane, TreeSpec]] = []
        for lane in lanes:
            assert lane.root is not None
            lookup = lane.own.lookup(lane.root, min(lane.room, self.limits.tree_nodes, lane.cache.room))
            if lookup is not None:
                spec = TreeSpec(len(lookup), len(lookup) - 1, 1)
                if lane.policy is None and isinstance(lane.own, SuffixDrafter):
                    offers.append(_Offer(lane, np.array(lane.own.probabilities), len(lookup), spec, _front_of(lookup), None))
                else:
                    planned.append(Planned(lane, lookup, spec, chosen=False))
                continue
            most = min(self.limits.tree_nodes, self.target.max_nodes(lane.cache))
            spec = lane.spec(most, self.bounds, len(lanes), waiting)
            if lane.draft is not None and lane.draft.waiting_tokens and spec.nodes > 1:
                able.append((lane, spec))
            else:
                planned.append(_undrafted(lane, spec))
        left_out = self._left_out([lane for lane, _ in able if lane.policy is None])
        planned += [_undrafted(lane, spec) for lane, spec in able if lane in left_out]
        wishing = [lane for lane, _ in able if lane not in left_out]
        wishes = [self._wish(lane, spec) for lane, spec in able if lane not in left_out]
        for lane, wish, tree in zip(wishing, wishes, self._grown(wishes), strict=True):
            if tree is None:
                planned.append(Planned(lane, Tree.chain([wish.root]), wish.spec))
            elif lane.policy is None:
                probabilities = self.budget.probabilities(lane.history, tree.scores)
                promised = np.exp(np.sort(tree.scores)[::-1])
                offers.append(_Offer(lane, probabilities, wish.spec.nodes, wish.spec, tree.tree, promised))
            else:
                nodes = wish.growth.num_nodes(tree.partial) if wish.growth else wish.spec.nodes
                planned.append(self._sized(lane, tree.tree(max(1, min(nodes, wish.spec.nodes, len(tree.scores) + 1))), wish.spec))
        planned += self._shared(offers, [len(each.tree) for each in planned])
        return [_constrained(each) for each in planned]

    def _left_out(self, sharing: Sequence[Lane]) -> set[Lane]:
        """The lanes that the row budget leaves without a draft in this round."""
        if not sharing:
            return set()
        drafting = self.budget.participants([lane.history for lane in sharing], self.bounds.width)
        return {lane for lane, drafts in zip(sharing, drafting, strict=True) if not drafts}

    def _wish(self, lane: Lane, spec: TreeSpec) -> Wish:
        assert self.draft is not None
        assert lane.draft is not None
        assert lane.root is not None
        width = min(spec.width, self.draft.max_width)
        clipped = TreeSpec(min(spec.nodes, TreeSpec(1, spec.depth, width).capacity), spec.depth, width)
        history = lane.history if lane.policy is None else None
        return Wish(lane.draft, lane.root, clipped.within(self.limits.tree_nodes, self.draft.max_depth), lane.growth, history)

    def _grown(self, wishes: Sequence[Wish]) -> Sequence[GrowingTree | None]:
        if not wishes or self.draft is None:
            return []
        # A lane that did not draft for a while reads what waits first, which takes longer than drafting does.
        usual = all(len(wish.lane.waiting_tokens) <= wish.spec.depth + 1 for wish in wishes)
        started = perf_counter()
        trees = self.draft.draft(wishes, self._deeper)
        milliseconds = 1000 * (perf_counter() - started)
        if trees is None:
            return [None] * len(wishes)
        levels = [tree.level for tree in trees]
        growing = [sum(level > at for level in levels) for at in range(max(levels))]
        self.budget.observe_draft(growing, max(wish.spec.width for wish in wishes), milliseconds if usual else None)
        return trees

    def _deeper(self, grown: Sequence[tuple[Wish, GrowingTree]]) -> list[bool]:
        """Which trees get another level. All have the same number of levels, because they grow together."""
        beams = []
        for wish, tree in grown:
            assert wish.history is not None
            beams.append(self.budget.probabilities(wish.history, tree.beam_scores))
        return self.budget.deeper(beams, grown[0][1].level, self.bounds.width)

    def _shared(self, offers: Sequence[_Offer], others: Sequence[int]) -> list[Planned]:
        """The trees that share the row budget; ``others`` are rows of each lane that does not."""
        if not offers:
            return []
        probabilities = [offer.probabilities for offer in offers]
        sizes = self.budget.nodes(probabilities, [each.most for each in offers], others)
        planned = []
        for offer, nodes in zip(offers, sizes, strict=True):
            spec = offer.spec.within(nodes, offer.spec.depth)
            if offer.promised is not None:
                planned.append(self._sized(offer.lane, offer.tree(nodes), spec, float(offer.promised[: nodes - 1].sum())))
            else:
                assert isinstance(offer.lane.own, SuffixDrafter)
                offer.lane.own.shorten(nodes)
                planned.append(Planned(offer.lane, offer.tree(nodes), spec))
        return planned

    def _sized(self, lane: Lane, tree: Tree, spec: TreeSpec, promised: float | None = None) -> Planned:
        if isinstance(lane.own, SuffixDrafter):
            lane.own.drafted(tree, spec.width)
        return Planned(lane, tree, spec, promised)


def _constrained(planned: Planned) -> Planned:
    """The plan without what the lane's constraint does not allow."""
    constraint = planned.lane.request.constraint
    tree = planned.tree if constraint is None else allowed_part(planned.tree, constraint)
    if len(tree) == len(planned.tree):
        return planned
    return replace(planned, tree=tree, spec=planned.spec.within(len(tree), planned.spec.depth), promised=None)


def _undrafted(lane: Lane, spec: TreeSpec) -> Planned:
    """A tree without the draft model."""
    assert lane.root is not None
    own = _on_host(lane.own.draft(lane.root, spec))
    return Planned(lane, own, spec if lane.policy else spec.within(len(own), spec.depth))


def _front_of(chain: Tree) -> Callable[[int], Tree]:
    return lambda nodes: Tree.chain(chain.tokens[:nodes].tolist(), chain.source)


def _on_host(tree: Tree | DeviceTree) -> Tree:
    assert isinstance(tree, Tree)  # no lane has a drafter that leaves its tree on a device
    return tree
