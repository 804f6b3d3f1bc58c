"""What networks could decide in the place of the row budget, with labels for every choice: the records know how each would have ended.

- *Who drafts*: the accepted tokens of a lane's next tree, before any of it is paid for.
- *How deep*: what the next level gives, its rows paid, given the candidates that it would grow from.
- *Re-SpS with the load in its state*: the tree of the next rounds, from the target's features and the number of lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from export.tuning.load.arms import LanePolicies, SharedBudget
from export.tuning.load.arrivals import at_once
from export.tuning.load.simulation import Arm, Planned, RoundMs, SimulatedLane, simulate_load
from export.tuning.replay.simulation import Answers, accepted_tokens, any_trace, num_candidates
from policy import ActionPersistence, CorrectedLatency, LaneHistory, LanesLatency, Observation, Outcome, RowBudget, TreeSpec
from policy.forest.history import Record

GROUPS = {"record": slice(0, 7), "position": slice(7, 9), "load": slice(9, 11), "features": slice(11, 35)}
"""Where each kind of information is in what the first network reads."""
COMPONENTS = 24  # of the target's features
HOLD, STRIDE = 10, 4  # rounds of a label of Re-SpS, positions between two labels
Net = Callable[[np.ndarray], np.ndarray]
"""Inputs [n, F] -> one number each [n], or logits [n, A]."""


@dataclass
class Recent(LaneHistory):
    """A lane's record with what its last rounds brought. ``predicted``: what a network says of its next tree, instead of the record."""

    short: float = 0.5
    last: float = 0.0
    undrafted: int = 0
    predicted: float | None = None

    def add(self, accepted: int, expected: float, rows: int) -> None:
        super().add(accepted, expected, rows)
        self.short, self.last, self.undrafted = 0.8 * self.short + 0.2 * accepted, float(accepted), 0

    def tokens(self, pool: Record) -> float:
        return super().tokens(pool) if self.predicted is None else self.predicted


@dataclass(frozen=True)
class Projection:
    """The first principal components of the target's features."""

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, answers: Answers) -> Projection:
        rows = np.concatenate([any_trace(traces).features[::STRIDE] for traces in answers]).astype(np.float32)
        deviation = np.maximum(rows.std(0), 1e-3)
        _, _, axes = np.linalg.svd((rows - rows.mean(0)) / deviation, full_matrices=False)
        return cls(rows.mean(0), axes[:COMPONENTS] / deviation)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return np.asarray((features.astype(np.float32) - self.mean) @ self.axes.T / 10)


@dataclass
class Examples:
    """Inputs and labels of the first two networks, over rounds and lanes."""

    who: list[tuple[np.ndarray, float]] = field(default_factory=list)
    deep: list[tuple[np.ndarray, float]] = field(default_factory=list)


class LearnedBudget(RowBudget):
    """The row budget with a network for "how deep", if there is one."""

    deep: Net | None = None

    def deeper(self, beams: Sequence[np.ndarray], level: int, width: int) -> list[bool]:
        if self.deep is None:
            return super().deeper(beams, level, width)
        worth = self.deep(np.stack([beam_state(each, level, self.load[0], width, self._row) for each in beams]))
        order = sorted(range(len(beams)), key=lambda index: -worth[index])
        costs = [self.latency.draft(count, width, level + 1) - self.latency.draft(count, width, level) for count in range(len(beams) + 1)]
        totals = np.concatenate([[0.0], np.cumsum([worth[index] for index in order])]) - self.rate * np.array(costs)
        chosen = set(order[: int(np.argmax(totals))])
        return [index in chosen for index in range(len(beams))]


def beam_state(beams: np.ndarray, level: int, lanes: int, width: int, row: float) -> np.ndarray:
    """What the network for the depth reads: the candidates' probabilities, best first, the level, the load, and what a row costs."""
    best = np.zeros(width, np.float32)
    best[: len(beams)] = np.sort(beams)[::-1][:width]
    return np.array([*best, *np.log(best + 1e-3), level, np.log2(lanes), row], np.float32)


class LearningBudget(SharedBudget):
    """The row budget over lanes with a Recent record. ``who``: the network that says who drafts. ``examples``: collects labels."""

    def __init__(
        self, budget: RowBudget, bounds: TreeSpec, projection: Projection, who: Net | None = None, examples: Examples | None = None
    ) -> None:
        super().__init__(budget, bounds, everyone=examples is not None)
        self._projection, self._who, self._examples = projection, who, examples
        self._states: dict[SimulatedLane, np.ndarray] = {}

    def admit(self, lane: SimulatedLane) -> None:
        lane.history = Recent()

    def plan(self, lanes: Sequence[SimulatedLane], waiting: int, beside: int) -> list[Planned]:
        self._states = {lane: self._state(lane, len(lanes)) for lane in lanes}
        if self._who is not None:
            for lane, predicted in zip(lanes, self._who(np.stack(list(self._states.values()))), strict=True):
                assert isinstance(lane.history, Recent)
                lane.history.predicted = float(predicted)
        return super().plan(lanes, waiting, beside)

    def _state(self, lane: SimulatedLane, lanes: int) -> np.ndarray:
        history, pool = lane.history, self.budget.pool
        assert isinstance(history, Recent)
        mean = pool.accepted / pool.trees
        own = (10 * mean + history.own.accepted) / (10 + history.own.trees)
        record = [mean, own, np.log1p(history.own.trees), history.trust(pool), history.short, history.last, np.log1p(history.undrafted)]
        position = [np.log1p(lane.position), np.log(lane.length)]
        features = self._projection(any_trace(lane.answer).features[lane.position])
        return np.array([*record, *position, np.log2(lanes), self.budget._row, *features], np.float32)

    def observe(self, lanes: Sequence[SimulatedLane], planned: Sequence[Planned], accepted: Sequence[int], ms: RoundMs) -> None:
        if self._examples is not None:
            self._note(lanes, planned, accepted)
        super().observe(lanes, planned, accepted, ms)
        for lane, plan in zip(lanes, planned, strict=True):
            if not plan.depth:
                assert isinstance(lane.history, Recent)
                lane.history.undrafted += 1

    def _note(self, lanes: Sequence[SimulatedLane], planned: Sequence[Planned], accepted: Sequence[int]) -> None:
        assert self._examples is not None
        for lane, plan, count in zip(lanes, planned, accepted, strict=True):
            if not plan.depth:
                continue
            self._examples.who.append((self._states[lane], float(count)))
            trace, width, row = lane.answer[plan.width], plan.width, self.budget._row
            ends = [0, *(num_candidates(width, level) for level in range(1, trace.depth + 1))]
            likely = self.budget.probabilities(lane.history, trace.scores[lane.position])
            for level in range(1, trace.depth):
                parents, children = (likely[ends[at] : ends[at + 1]] for at in (level - 1, level))
                verified, right = children > row, int(trace.path[lane.position, level]) - ends[level]
                gain = float(right >= 0 and verified[right]) - row * float(verified.sum())
                self._examples.deep.append((beam_state(np.sort(parents)[::-1][:width], level, len(lanes), width, row), gain))


def collected(answers: Answers, latency: LanesLatency, bounds: TreeSpec, loads: Sequence[int], rows: int, project: Projection) -> Examples:
    """Labels from runs of the row budget in which everybody drafts."""
    examples = Examples()
    for lanes in loads:
        arm = LearningBudget(RowBudget(CorrectedLatency(latency), rows * lanes), bounds, project, examples=examples)
        simulate_load(arm, answers, at_once(len(answers)), lanes, latency, charge=False)
    return examples


def resps_examples(
    answers: Answers, latency: LanesLatency, trees: Sequence[TreeSpec], rates: dict[int, float], length: float, project: Projection
) -> tuple[np.ndarray, np.ndarray]:
    """States [n, COMPONENTS + 1] and what every tree is worth there [n, A]: its tokens over HOLD rounds less ``rates`` (tokens per
    millisecond of the best tree, by number of lanes) times the time of a lane's part of them."""
    states, worth = [], []
    for traces in answers:
        count = len(any_trace(traces))
        gains = np.array([[1 + _accepted(traces, at, tree) for at in range(count)] for tree in trees])
        for at in range(0, count - HOLD, STRIDE):
            tokens = [_walked(each, at) for each in gains]
            state = project(any_trace(traces).features[at])
            for lanes, rate in rates.items():
                costs = [
                    (latency.draft(lanes, tree.width, tree.depth) + latency.verify(lanes * tree.nodes, lanes, length) + latency.host(lanes))
                    / lanes
                    for tree in trees
                ]
                states.append([*state, np.log2(lanes)])
                worth.append([total - rate * rounds * cost for (total, rounds), cost in zip(tokens, costs, strict=True)])
    return np.array(states, np.float32), np.array(worth, np.float32)


def _accepted(traces: object, at: int, tree: TreeSpec) -> int:
    return 0 if tree.nodes == 1 else accepted_tokens(traces[tree.width], at, tree.depth, tree.nodes)  # type: ignore[index]


def _walked(gains: np.ndarray, at: int) -> tuple[int, int]:
    """Tokens and rounds from a position on, at most HOLD rounds."""
    start, rounds = at, 0
    while rounds < HOLD and at < len(gains):
        at += int(gains[at])
        rounds += 1
    return at - start, rounds


def fitted(inputs: np.ndarray, labels: np.ndarray, hidden: int, seed: int, epochs: int = 6) -> Net:
    """A network with a hidden layer, or a line if ``hidden`` is 0. ``labels``: numbers [n], for the least squares; or what each action is
    worth [n, A], for the policy with the highest mean."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    mean, deviation = inputs.mean(0), np.maximum(inputs.std(0), 1e-3)
    x, y = torch.from_numpy((inputs - mean) / deviation), torch.from_numpy(labels)
    outputs = 1 if y.ndim == 1 else y.shape[1]
    first = [torch.nn.Linear(x.shape[1], hidden), torch.nn.ReLU()] if hidden else []
    net = torch.nn.Sequential(*first, torch.nn.Linear(hidden or x.shape[1], outputs))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(512):
            given = net(x[batch])
            loss = (given[:, 0] - y[batch]).square().mean() if outputs == 1 else -(given.softmax(-1) * y[batch]).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    layers = [(each.weight.detach().numpy(), each.bias.detach().numpy()) for each in net if isinstance(each, torch.nn.Linear)]
    return partial(_run, mean, deviation, layers)


def _run(mean: np.ndarray, deviation: np.ndarray, layers: Sequence[tuple[np.ndarray, np.ndarray]], inputs: np.ndarray) -> np.ndarray:
    value = (inputs - mean) / deviation
    for number, (weight, bias) in enumerate(layers):
        value = (np.maximum(value, 0) if number else value) @ weight.T + bias
    return np.asarray(value[:, 0] if value.shape[1] == 1 else value)


@dataclass
class LoadResps:
    """Re-SpS over the projected features and the number of lanes."""

    net: Net
    actions: Sequence[TreeSpec]
    project: Projection

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        state = np.array([[*self.project(observation.features), np.log2(observation.lanes)]], np.float32)
        return self.actions[int(np.argmax(self.net(state)[0]))]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to do: the weights are fixed."""


def resps_arm(net: Net, actions: Sequence[TreeSpec], project: Projection, rounds: int) -> Arm:
    """Every lane's tree by Re-SpS, held for ``rounds`` rounds."""
    return LanePolicies(lambda: ActionPersistence(LoadResps(net, actions, project), rounds))
