"""Bounds beside the policies: the trees of somebody who knows every draft score before paying for it, or the answer itself.

Each round takes the trees with the largest tokens - rate x milliseconds, where ``rate`` follows the rounds so far (Dinkelbach's method).
The trees of a round share its costs, so they are improved one lane after the other until nothing changes. For one lane that is the best
tree; for several it is a local optimum, so the true bound lies a little higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from policy import Calibration, LanesLatency

from ..replay.simulation import accepted_tokens, num_candidates
from .simulation import Planned, RoundMs, SimulatedLane

Values = Callable[[SimulatedLane, int, int], np.ndarray]
"""(lane, depth, nodes) -> what each tree gives beyond a token: [depth + 1, nodes], by levels and by nodes from 1."""

_MEMORY, _SWEEPS = 0.98, 4
_LIMITS = (2, 4, 1 << 30)  # rows of the largest tree that are tried: lowering one of two such trees alone saves nothing


class Bound:
    """An arm that chooses by ``values`` among the trees of ``width`` up to ``depth`` levels and ``nodes`` nodes."""

    charged = False

    def __init__(self, values: Values, latency: LanesLatency, width: int, depth: int, nodes: int) -> None:
        self._values, self._latency = values, latency
        self._width, self._depth, self._nodes = width, depth, nodes
        self._rates: dict[int, tuple[float, float]] = {}

    def admit(self, lane: SimulatedLane) -> None:
        """Every round is decided by itself."""

    def plan(self, lanes: Sequence[SimulatedLane], waiting: int, beside: int) -> list[Planned]:
        count, length = len(lanes), sum(lane.length for lane in lanes) / len(lanes)
        plain = self._latency.verify(count, count, length) + self._latency.host(count)
        tokens, spent = self._rates.setdefault(count, (8.0 * count, 8.0 * plain))
        rate = tokens / spent
        rows = (
            np.array([self._latency.verify(each, count, length) for each in range(count + beside, count * self._nodes + beside + 1)]) * rate
        )
        levels = rate * np.array(
            [[self._latency.draft(many, self._width, depth) for depth in range(self._depth + 1)] for many in range(count + 1)]
        )
        values = [self._values(lane, min(self._depth, lane.room - 1, lane.answer[self._width].depth), self._nodes) for lane in lanes]
        place, found = rate * self._latency.place(length) * count, []
        for limit in _LIMITS if place and count > 1 else (self._nodes,):
            cut = [value[:, :limit] for value in values]
            for start in ([(0, 1)] * count, [_alone(value, rows, levels) for value in cut]):
                found.append(_improved(cut, start, rows, levels, place))
        best = max(found, key=lambda each: each[0])[1]
        return [Planned(nodes, depth, self._width if depth else 0) for depth, nodes in best]

    def observe(self, lanes: Sequence[SimulatedLane], planned: Sequence[Planned], accepted: Sequence[int], ms: RoundMs) -> None:
        if ms.beside:
            return
        tokens, spent = self._rates[len(lanes)]
        self._rates[len(lanes)] = _MEMORY * tokens + sum(accepted) + len(lanes), _MEMORY * spent + ms.whole


def _alone(values: np.ndarray, rows: np.ndarray, levels: np.ndarray) -> tuple[int, int]:
    """The best (depth, nodes) of a lane if all lanes shared the costs alike."""
    count = len(levels) - 1
    each_row = (rows[-1] - rows[0]) / max(1, len(rows) - 1)
    net = values - each_row * np.arange(values.shape[1]) - levels[count, : len(values), None] / count
    depth, nodes = np.unravel_index(int(np.argmax(net)), net.shape)
    return int(depth), int(nodes) + 1


def _improved(
    values: Sequence[np.ndarray], start: Sequence[tuple[int, int]], rows: np.ndarray, levels: np.ndarray, place: float
) -> tuple[float, list[tuple[int, int]]]:
    """The trees after one lane after the other took its best one beside the others', and what they are worth. ``place``: what one more
    place in attention costs in all lanes (`policy.latency.padding`)."""
    chosen, steps, count = list(start), np.diff(levels, axis=1), len(values)  # steps [lanes + 1, levels]: cost of a level

    def unfilled(more: np.ndarray, widest: np.ndarray) -> np.ndarray:
        return np.asarray(place * np.maximum(0, widest - -(-(count + more) // count)))

    for _ in range(_SWEEPS):
        before = list(chosen)
        for lane, value in enumerate(values):
            others = [tree for at, tree in enumerate(chosen) if at != lane]
            growing = np.array([sum(depth > at for depth, _ in others) for at in range(steps.shape[1])], int)
            added = steps[growing + 1, np.arange(steps.shape[1])] - steps[growing, np.arange(steps.shape[1])]
            drafting = np.concatenate([[0.0], np.cumsum(added)])[: len(value)]
            taken = sum(nodes - 1 for _, nodes in others)
            own = np.arange(value.shape[1])
            padded = unfilled(taken + own, np.maximum(own + 1, max((nodes for _, nodes in others), default=1)))
            net = value - drafting[:, None] - (rows[taken : taken + value.shape[1]] - rows[taken]) - padded
            depth, nodes = np.unravel_index(int(np.argmax(net)), net.shape)
            chosen[lane] = int(depth), int(nodes) + 1
        if chosen == before:
            break
    growing = np.array([sum(depth > at for depth, _ in chosen) for at in range(steps.shape[1])], int)
    worth = sum(float(value[tree[0], tree[1] - 1]) for value, tree in zip(values, chosen, strict=True))
    more, widest = sum(nodes - 1 for _, nodes in chosen), max(nodes for _, nodes in chosen)
    spent = steps[growing, np.arange(steps.shape[1])].sum() + rows[more] + unfilled(np.array(more), np.array(widest))
    return worth - float(spent), chosen


def clairvoyant(width: int) -> Values:
    """Knows the answer: how many tokens each tree will have accepted."""
    known: dict[tuple[int, int], np.ndarray] = {}

    def values(lane: SimulatedLane, depth: int, nodes: int) -> np.ndarray:
        trace, key = lane.answer[width], (id(lane.answer[width]), lane.position)
        if key not in known:
            known[key] = np.array(
                [
                    [accepted_tokens(trace, lane.position, levels, count) if levels else 0 for count in range(1, nodes + 1)]
                    for levels in range(trace.depth + 1)
                ],
                np.float64,
            )
        return known[key][: depth + 1]

    return values


def all_scores(width: int, calibration: Calibration) -> Values:
    """Knows all scores of a full tree, and what they promise."""

    def values(lane: SimulatedLane, depth: int, nodes: int) -> np.ndarray:
        trace, found = lane.answer[width], np.zeros((depth + 1, nodes))
        fit = calibration.slope * trace.scores[lane.position] + calibration.level * trace.levels + calibration.bias
        promised = 1 / (1 + np.exp(-fit))
        for levels in range(1, depth + 1):
            best = np.sort(promised[: num_candidates(width, levels)])[::-1][: nodes - 1]
            found[levels, 1 : len(best) + 1] = np.cumsum(best)
            found[levels, len(best) + 1 :] = found[levels, len(best)]
        return found

    return values
