"""Trains each learned policy on recorded answers, a share of the time each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter

import numpy as np

from policy import Policy, TreeSpec
from policy.ltd import Ltd
from policy.resps import Action

from ..replay.grid import TreeGrid
from .learn import RESPS, RESPS_MAX_ENTROPY, learn_ltd, learn_resps
from .nets import Mlp
from .ppo import Lesson, PpoSettings, TrainedActor, TrainingLimits
from .trained import EVERY, Trained

STEPS = 10_000_000  # time ends a training, not their number


@dataclass(frozen=True)
class Course:
    """What all trainings have in common. ``static``: the best fixed tree; ``tree``: the largest that LTD may grow; ``turn_seconds``: of one
    training of one network."""

    lesson: Lesson
    grid: TreeGrid
    static: TreeSpec
    tree: Action
    turn_seconds: float
    policy_ms: float
    seed: int = 0
    progress: Callable[[float], None] = lambda _: None

    @property
    def limits(self) -> TrainingLimits:
        return TrainingLimits(STEPS, self.turn_seconds, self.seed, self.policy_ms, self.progress)


def train(names: Sequence[str], course: Course) -> dict[str, Trained]:
    """``names``: of LESSONS. What several need is trained once, with all of the turns."""
    found: dict[str, Trained] = {}
    rates: dict[str, float] = {}
    order, total = _order(names), turns_of(names)
    done = 0
    for name in order:
        lesson = LESSONS[name]
        part = _part(course, done, lesson.turns, total)
        found[name], rates[name] = lesson.teach(part, [(found[each], rates[each]) for each in lesson.after])
        done += lesson.turns
    return {name: found[name] for name in names}


def turns_of(names: Sequence[str]) -> int:
    """Trainings of one network that they take in all."""
    return sum(LESSONS[name].turns for name in _order(names))


def _order(names: Sequence[str]) -> list[str]:
    """``names`` and what they build on, which comes first."""
    order: list[str] = []
    for name in names:
        order += [each for each in [*_order(LESSONS[name].after), name] if each not in order]
    return order


Rated = tuple[Trained, float]
"""With tokens per millisecond on the validation answers."""


def _resps(settings: PpoSettings, state: str = "features") -> Callable[[Course, Sequence[Rated]], Rated]:
    def teach(course: Course, _: Sequence[Rated]) -> Rated:
        actions = course.grid.actions(course.static)
        found = learn_resps(course.lesson, actions, course.limits, settings, state=state)
        return Trained(slow=found.net, actions=actions, state=state), found.rate

    return teach


def _ltd(*turns: str) -> Callable[[Course, Sequence[Rated]], Rated]:
    def teach(course: Course, before: Sequence[Rated]) -> Rated:
        known = _learned(before[0][0].depth) if before else None
        sizes, few = course.grid.budgets, course.static.nodes  # without a size network as many are verified as of the best fixed tree
        depth, size = learn_ltd(course.lesson, course.tree, sizes, course.limits, turns, known, start_nodes=few, every=EVERY)
        last = {"depth": depth, "size": size}[turns[-1]]
        assert last is not None
        nets = [each.net if each else None for each in (depth, size)]
        tree = course.tree if size else (few, *course.tree[1:])
        return Trained(depth=nets[0], size=nets[1], tree=tree, sizes=sizes), last.rate

    return teach


def _faster(_: Course, before: Sequence[Rated]) -> Rated:
    return max(before, key=lambda rated: rated[1])


def _under(course: Course, before: Sequence[Rated]) -> Rated:
    """Re-SpS' slow choice of the bounds within which LTD stops."""
    ltd = before[0][0]

    def under(slow: Policy) -> Policy:
        return Ltd(ltd.depth, ltd.size, ltd.tree, EVERY, ltd.sizes, slow)

    actions = course.grid.actions(TreeSpec(*course.tree))
    found = learn_resps(course.lesson, actions, course.limits, RESPS, under)
    return replace(ltd, slow=found.net, actions=actions), found.rate


@dataclass(frozen=True)
class _Lesson:
    """``turns``: trainings of one network; ``after``: lessons whose results it gets."""

    turns: int
    teach: Callable[[Course, Sequence[Rated]], Rated]
    after: tuple[str, ...] = ()


LESSONS = {
    "resps": _Lesson(1, _resps(RESPS)),
    "resps-max-entropy": _Lesson(1, _resps(RESPS_MAX_ENTROPY)),
    "resps-average": _Lesson(1, _resps(RESPS, "average")),
    "ltd-depth": _Lesson(1, _ltd("depth")),
    "ltd-size": _Lesson(1, _ltd("size")),
    "ltd-both": _Lesson(2, _ltd("size", "depth"), ("ltd-depth",)),
    "ltd": _Lesson(0, _faster, ("ltd-depth", "ltd-both")),
    "resps+ltd": _Lesson(1, _under, ("ltd",)),
}
"""What can be trained; "ltd" is whichever of depth alone and both is faster on the validation answers."""


def policy_cost(features: int, actions: int) -> float:
    """Milliseconds of one call of a network of Re-SpS' size on this machine."""
    random = np.random.default_rng(0)
    sizes = (features, 128, 128, actions)
    layers = tuple(
        (random.standard_normal((outputs, inputs)).astype(np.float32), np.zeros(outputs, np.float32)) for inputs, outputs in pairwise(sizes)
    )
    net, state, times = Mlp(layers, "tanh", normalise=True), np.ones((1, features), np.float32), []
    for _ in range(50):
        started = perf_counter()
        net(state)
        times.append(1000 * (perf_counter() - started))
    return float(np.median(times))


def _learned(net: Mlp | None) -> TrainedActor | None:
    return TrainedActor(net.layers, net.activation, net.normalise, 0.0, ()) if net else None


def _part(course: Course, done: int, turns: int, total: int) -> Course:
    """Its progress is ``turns`` of ``total``."""
    return replace(course, progress=lambda share: course.progress((done + turns * share) / max(1, total)))
