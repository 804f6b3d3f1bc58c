"""Which learned policies there are and how each is trained: the table RECIPES. Add an entry there for a new one.

A recipe may build on the results of others; networks that several policies need are trained once. The available time is shared equally
between all training runs.
"""

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
from .learn import RESPS, RESPS_MAX_ENTROPY, train_ltd, train_resps
from .nets import Mlp
from .ppo import PpoSettings, TrainedActor, TrainingData, TrainingLimits
from .trained import DEPTH_INTERVAL, TrainedPolicy

MAX_STEPS = 10_000_000  # never reached: time ends a training run


@dataclass(frozen=True)
class TrainingSetup:
    """What all training runs share.

    fixed_tree: the best fixed tree. largest_tree: the largest tree that LTD may grow. run_seconds: time of one run, which trains one
    network. policy_ms: milliseconds of one call of a network. progress: called with the share done.
    """

    data: TrainingData
    grid: TreeGrid
    fixed_tree: TreeSpec
    largest_tree: Action
    run_seconds: float
    policy_ms: float
    seed: int = 0
    progress: Callable[[float], None] = lambda _: None

    @property
    def limits(self) -> TrainingLimits:
        """The limits of one run."""
        return TrainingLimits(MAX_STEPS, self.run_seconds, self.seed, self.policy_ms, self.progress)


@dataclass(frozen=True)
class RatedPolicy:
    """``rate``: tokens per millisecond on the validation answers. ``depth``: LTD's depth network as it was trained, if it has one."""

    policy: TrainedPolicy
    rate: float
    depth: TrainedActor | None = None


Train = Callable[[TrainingSetup, Sequence[RatedPolicy]], RatedPolicy]


@dataclass(frozen=True)
class PolicyRecipe:
    """How a policy is trained. ``runs``: number of networks trained, one after the other. ``builds_on``: recipes whose results ``train``
    gets."""

    runs: int
    train: Train
    builds_on: tuple[str, ...] = ()


def train_policies(names: Sequence[str], setup: TrainingSetup) -> dict[str, TrainedPolicy]:
    """Train the policies ``names`` (keys of RECIPES) and those that they build on."""
    results: dict[str, RatedPolicy] = {}
    total, done = num_runs(names), 0
    for name in _with_dependencies(names):
        recipe = RECIPES[name]
        part = _with_progress(setup, done, recipe.runs, total)
        results[name] = recipe.train(part, [results[dependency] for dependency in recipe.builds_on])
        done += recipe.runs
    return {name: results[name].policy for name in names}


def num_runs(names: Sequence[str]) -> int:
    """Number of training runs for the policies ``names``, dependencies included."""
    return sum(RECIPES[name].runs for name in _with_dependencies(names))


def _with_dependencies(names: Sequence[str]) -> list[str]:
    """``names`` and all recipes that they build on, in an order that trains dependencies first."""
    order: list[str] = []
    for name in names:
        order += [recipe for recipe in [*_with_dependencies(RECIPES[name].builds_on), name] if recipe not in order]
    return order


def _with_progress(setup: TrainingSetup, done: int, runs: int, total: int) -> TrainingSetup:
    """The setup for ``runs`` of ``total`` runs, after ``done``: its progress counts on from there."""
    return replace(setup, progress=lambda share: setup.progress((done + runs * share) / max(1, total)))


def _resps(settings: PpoSettings, state: str = "features") -> Train:
    """Re-SpS with a network that reads ``state``."""

    def train(setup: TrainingSetup, _: Sequence[RatedPolicy]) -> RatedPolicy:
        actions = setup.grid.actions(setup.fixed_tree)
        actor = train_resps(setup.data, actions, setup.limits, settings, state=state)
        return RatedPolicy(TrainedPolicy(slow=actor.net, actions=actions, state=state), actor.rate)

    return train


def _ltd(*phases: str) -> Train:
    """LTD's networks, trained in alternation ("depth", "size"), from the depth network of the recipe it builds on, if any. A size network
    alone gets trees as deep as the best fixed tree: nothing stops the growth of deeper ones, whose time it would have to pay."""

    def train(setup: TrainingSetup, dependencies: Sequence[RatedPolicy]) -> RatedPolicy:
        start = dependencies[0].depth if dependencies else None
        # Without a size network as many nodes are verified as in the best fixed tree.
        sizes, fixed_nodes = setup.grid.ltd_sizes, setup.fixed_tree.nodes
        largest = setup.largest_tree if "depth" in phases or start else _as_deep(setup.largest_tree, setup.fixed_tree)
        depth, size = train_ltd(setup.data, largest, sizes, setup.limits, phases, start, start_nodes=fixed_nodes, every=DEPTH_INTERVAL)
        last = {"depth": depth, "size": size}[phases[-1]]
        assert last is not None
        tree = largest if size else (fixed_nodes, *largest[1:])
        policy = TrainedPolicy(depth=depth.net if depth else None, size=size.net if size else None, tree=tree, sizes=sizes)
        return RatedPolicy(policy, last.rate, depth)

    return train


def _as_deep(tree: Action, fixed_tree: TreeSpec) -> Action:
    """``tree`` with the depth of the fixed tree, if that drafts."""
    nodes, depth, width = tree
    depth = min(depth, fixed_tree.depth) or depth
    return min(nodes, TreeSpec(1, depth, width).capacity), depth, width


def _faster(_: TrainingSetup, dependencies: Sequence[RatedPolicy]) -> RatedPolicy:
    return max(dependencies, key=lambda rated: rated.rate)


def _resps_with_ltd(setup: TrainingSetup, dependencies: Sequence[RatedPolicy]) -> RatedPolicy:
    """Re-SpS chooses the bounds of the tree, and LTD stops its growth within them."""
    ltd = dependencies[0].policy

    def with_ltd(slow: Policy) -> Policy:
        return Ltd(ltd.depth, ltd.size, ltd.tree, DEPTH_INTERVAL, ltd.sizes, slow)

    actions = setup.grid.actions(TreeSpec(*setup.largest_tree))
    actor = train_resps(setup.data, actions, setup.limits, RESPS, with_ltd)
    return RatedPolicy(replace(ltd, slow=actor.net, actions=actions), actor.rate)


RECIPES = {
    "resps": PolicyRecipe(1, _resps(RESPS)),
    "resps-max-entropy": PolicyRecipe(1, _resps(RESPS_MAX_ENTROPY)),
    "resps-average": PolicyRecipe(1, _resps(RESPS, "average")),
    "ltd-depth": PolicyRecipe(1, _ltd("depth")),
    "ltd-size": PolicyRecipe(1, _ltd("size")),
    "ltd-both": PolicyRecipe(2, _ltd("size", "depth"), ("ltd-depth",)),
    "ltd": PolicyRecipe(0, _faster, ("ltd-depth", "ltd-both")),
    "resps+ltd": PolicyRecipe(1, _resps_with_ltd, ("ltd",)),
}
"""The learned policies by name. "ltd" is the faster one of "ltd-depth" and "ltd-both" on the validation answers."""


def measure_policy_ms(features: int, actions: int) -> float:
    """Milliseconds of one call of a network of Re-SpS' size ([1, features] -> [1, actions]) on this machine."""
    random = np.random.default_rng(0)
    sizes = (features, 128, 128, actions)
    layers = tuple(
        (random.standard_normal((outputs, inputs)).astype(np.float32), np.zeros(outputs, np.float32)) for inputs, outputs in pairwise(sizes)
    )
    net, state, times = Mlp(layers, "tanh"), np.ones((1, features), np.float32), []
    for _ in range(50):
        started = perf_counter()
        net(state)
        times.append(1000 * (perf_counter() - started))
    return float(np.median(times))
