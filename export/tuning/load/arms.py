"""The arms of a comparison under load: policies of single lanes and the row budget, each as it runs in service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from policy import Observation, Outcome, Policy, RowBudget, TreeSpec

from ..replay.simulation import any_trace, num_candidates
from ..replay.traces import Trace
from .simulation import Planned, RoundMs, SimulatedLane, growing_lanes


class LanePolicies:
    """Every lane has its own policy, made by ``make``."""

    charged = True

    def __init__(self, make: Callable[[], Policy]) -> None:
        self._make = make

    def admit(self, lane: SimulatedLane) -> None:
        lane.policy = self._make()
        lane.policy.begin()

    def plan(self, lanes: Sequence[SimulatedLane], waiting: int, beside: int) -> list[Planned]:
        planned = []
        for lane in lanes:
            assert lane.policy is not None
            look = partial(_features, lane)
            observation = Observation(lane.length, lane.room, look, lanes=len(lanes), waiting=waiting)
            spec = lane.policy.choose(observation).within(64, lane.room - 1)
            planned.append(Planned(spec.nodes, spec.depth, spec.width))
        return planned

    def observe(self, lanes: Sequence[SimulatedLane], planned: Sequence[Planned], accepted: Sequence[int], ms: RoundMs) -> None:
        for lane, plan, count in zip(lanes, planned, accepted, strict=True):
            assert lane.policy is not None
            lane.policy.observe(Outcome(TreeSpec(plan.nodes, plan.depth, plan.width), plan.nodes, count + 1, ms.whole / 1000))


class SharedBudget:
    """The row budget decides for all lanes. ``bounds``: of every tree. ``everyone``: all lanes draft, whatever their record says."""

    charged = True

    def __init__(self, budget: RowBudget, bounds: TreeSpec, everyone: bool = False) -> None:
        self.budget, self._bounds, self._everyone = budget, bounds, everyone
        self._promised: list[float | None] = []

    def admit(self, lane: SimulatedLane) -> None:
        """A lane begins with an empty record."""

    def plan(self, lanes: Sequence[SimulatedLane], waiting: int, beside: int) -> list[Planned]:
        budget, width = self.budget, self._bounds.width
        budget.begin_round(len(lanes), sum(lane.length for lane in lanes) / len(lanes), beside)
        able = [lane for lane in lanes if lane.room > 1]
        drafting = budget.participants([lane.history for lane in able], width) if able else []
        who = [lane for lane, drafts in zip(able, drafting, strict=True) if drafts or self._everyone]
        levels = self._grow(who)
        offers, promised = [], {}
        for lane in who:
            trace, depth = lane.answer[width], levels[lane]
            count = num_candidates(width, depth)
            scores = trace.scores[lane.position, :count]
            offers.append(budget.probabilities(lane.history, scores))
            promised[lane] = np.exp(np.sort(scores)[::-1])
        most = [min(self._bounds.nodes, 1 + len(offer)) for offer in offers]
        sizes = dict(zip(who, budget.nodes(offers, most, [1] * (len(lanes) - len(who))), strict=True)) if who else {}
        self._promised = [float(promised[lane][: sizes[lane] - 1].sum()) if lane in sizes else None for lane in lanes]
        return [Planned(sizes[lane], levels[lane], width) if lane in sizes else Planned(1, 0, 0) for lane in lanes]

    def _grow(self, who: Sequence[SimulatedLane]) -> dict[SimulatedLane, int]:
        """How many levels each of the lanes gets."""
        width, levels, level = self._bounds.width, dict.fromkeys(who, 1), 1
        growing = list(who)
        while growing := [lane for lane in growing if level < min(self._bounds.depth, lane.room - 1, lane.answer[width].depth)]:
            beams = []
            for lane in growing:
                scores = np.sort(_last_level(lane.answer[width], lane.position, level))[-width:]
                beams.append(self.budget.probabilities(lane.history, scores))
            deeper = self.budget.deeper(beams, level, width)
            growing = [lane for lane, wanted in zip(growing, deeper, strict=True) if wanted]
            level += 1
            levels |= dict.fromkeys(growing, level)
        return levels

    def observe(self, lanes: Sequence[SimulatedLane], planned: Sequence[Planned], accepted: Sequence[int], ms: RoundMs) -> None:
        budget = self.budget
        if growing := growing_lanes(planned):
            budget.observe_draft(growing, self._bounds.width, ms.draft)
        for lane, plan, promised, count in zip(lanes, planned, self._promised, accepted, strict=True):
            if promised is not None:
                budget.observe_tree(lane.history, promised, count, plan.nodes - 1)
        if not ms.beside:
            rows = [plan.nodes for plan in planned]
            budget.observe_round(sum(accepted) + len(lanes), sum(rows), ms.verify, max(rows))


def _features(lane: SimulatedLane) -> np.ndarray:
    return np.asarray(any_trace(lane.answer).features[lane.position])


def _last_level(trace: Trace, position: int, level: int) -> np.ndarray:
    return np.asarray(
        trace.scores[position, num_candidates(trace.width, level - 1) if level > 1 else 0 : num_candidates(trace.width, level)]
    )
