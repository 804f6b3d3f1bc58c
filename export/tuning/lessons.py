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

from .grid import Grid
from .learn import RESPS, Learned, Lesson, Limits, Settings, learn_ltd, learn_resps
from .nets import Mlp
from .trained import EVERY, Trained

STEPS = 10_000_000  # time ends a training, not their number


@dataclass(frozen=True)
class Course:
    """What all trainings have in common. ``static``: the best fixed tree; ``tree``: the largest that LTD may grow; ``turn_seconds``: of one
    training of one network."""

    lesson: Lesson
    grid: Grid
    static: TreeSpec
    tree: Action
    turn_seconds: float
    policy_ms: float
    seed: int = 0
    progress: Callable[[float], None] = lambda _: None

    @property
    def limits(self) -> Limits:
        return Limits(STEPS, self.turn_seconds, self.seed, self.policy_ms)


TURNS = {"resps": 1, "ltd": 3, "resps+ltd": 1}
"""Trainings that each policy takes; resps+ltd also needs ltd's."""


def train(names: Sequence[str], course: Course) -> dict[str, Trained]:
    """``names``: of TURNS."""
    wanted = [name for name in ("ltd", "resps", "resps+ltd") if name in names or (name == "ltd" and "resps+ltd" in names)]
    total, done = sum(TURNS[name] for name in wanted), 0
    found: dict[str, Trained] = {}
    for name in wanted:
        part = _part(course, done, TURNS[name], total)
        if name == "ltd":
            found[name] = best_ltd(part)
        elif name == "resps":
            found[name] = train_resps(part)
        else:
            found[name] = train_under(part, found["ltd"])
        done += TURNS[name]
    return {name: found[name] for name in found if name in names}


def train_resps(course: Course, settings: Settings = RESPS) -> Trained:
    """Re-SpS alone."""
    actions = course.grid.actions(course.static)
    limits = replace(course.limits, progress=course.progress)
    return Trained(slow=learn_resps(course.lesson, actions, limits, settings).net, actions=actions)


def best_ltd(course: Course) -> Trained:
    """The depth network alone or both, whichever decodes the validation answers faster."""
    alone = train_ltd(_part(course, 0, 1, 3), ("depth",))
    both = train_ltd(_part(course, 1, 2, 3), ("size", "depth"), alone)
    return max(alone, both, key=lambda pair: pair[1])[0]


def train_ltd(course: Course, turns: Sequence[str], start: tuple[Trained, float] | None = None) -> tuple[Trained, float]:
    """LTD's networks by ``turns``, after those of ``start``; with tokens per millisecond on the validation answers."""
    known = _learned(start[0].depth) if start else None
    limits = replace(course.limits, progress=course.progress)
    depth, size = learn_ltd(course.lesson, course.tree, course.grid.budgets, limits, turns, known, every=EVERY)
    last = {"depth": depth, "size": size}[turns[-1]]
    assert last is not None
    trained = Trained(depth=depth.net if depth else None, size=size.net if size else None, tree=course.tree, sizes=course.grid.budgets)
    return trained, last.rate


def train_under(course: Course, ltd: Trained, settings: Settings = RESPS) -> Trained:
    """Re-SpS' slow choice of the bounds within which ``ltd`` stops."""

    def under(slow: Policy) -> Policy:
        return Ltd(ltd.depth, ltd.size, ltd.tree, EVERY, ltd.sizes, slow)

    largest = TreeSpec(*course.tree)
    actions = course.grid.actions(largest)
    limits = replace(course.limits, progress=course.progress)
    return replace(ltd, slow=learn_resps(course.lesson, actions, limits, settings, under).net, actions=actions)


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


def _learned(net: Mlp | None) -> Learned | None:
    return Learned(net.layers, net.activation, net.normalise, 0.0, ()) if net else None


def _part(course: Course, done: int, turns: int, total: int) -> Course:
    """Its progress is ``turns`` of ``total``."""
    return replace(course, progress=lambda share: course.progress((done + turns * share) / total))
