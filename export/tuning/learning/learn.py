"""What the two papers train: Re-SpS' network, and LTD's two by turns, on recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from policy import ActionPersistence, FixedPolicy, Policy
from policy.ltd import Ltd
from policy.resps import PERSISTENCE, TRAINING_PERSISTENCE, Action, Net, Resps

from .environment import LtdDepth, LtdSize, RespsWindow
from .nets import Mlp
from .ppo import Lesson, PpoSettings, TrainedActor, TrainingLimits, learn

RESPS = PpoSettings(3e-4, 64, 32, 4, 0.01, 0.0, (128, 128), (128, 128), "tanh", envs=4, normalise=True)
"""The paper's, "standard". Its gamma of 0.95 is without effect in its code, where each window ends an episode: 0 here."""

RESPS_MAX_ENTROPY = replace(RESPS, entropy=0.1)
"""The paper's default."""

LTD_DEPTH = PpoSettings(1e-3, 2048, 256, 10, 0.01, 0.999, (1024,), (1024, 256), "relu", envs=16, decay=True)
"""The paper's with 10 epochs of its 20: thousands of positions, not millions, repeat soon enough."""

LTD_SIZE = replace(LTD_DEPTH, gamma=0.0, hidden=(1024, 256))
"""One decision a round, so gamma has nothing to discount."""


def learn_resps(
    lesson: Lesson,
    actions: tuple[Action, ...],
    limits: TrainingLimits,
    settings: PpoSettings = RESPS,
    under: Callable[[Policy], Policy] = lambda slow: slow,
    state: str = "features",
) -> TrainedActor:
    """``under`` puts the slow policy, or one tree, under a fast one: ``lambda slow: Ltd(..., slow=slow)`` trains for resps+ltd."""

    def environment() -> RespsWindow:
        return RespsWindow(
            lesson.train,
            lesson.latency,
            lesson.rate,
            actions,
            TRAINING_PERSISTENCE,
            limits.policy_ms,
            lambda spec: under(FixedPolicy(spec)),
            state,
        )

    return learn(environment, lambda net: under(ActionPersistence(Resps(net, actions, state=state), PERSISTENCE)), lesson, limits, settings)


def learn_ltd(
    lesson: Lesson,
    tree: Action,
    sizes: tuple[int, ...],
    limits: TrainingLimits,
    turns: Sequence[str] = ("depth", "size", "depth"),
    depth: TrainedActor | None = None,
    size: TrainedActor | None = None,
    start_nodes: int | None = None,
    every: int = 1,
    depth_settings: PpoSettings = LTD_DEPTH,
    size_settings: PpoSettings = LTD_SIZE,
) -> tuple[TrainedActor | None, TrainedActor | None]:
    """The depth and the size network, trained by turns, each given the other as it is then (the paper's co-training); each turn of one
    starts from its last weights, ``depth`` and ``size`` before the first. ``limits`` are those of each turn. Before there is a size network
    ``start_nodes`` are verified (default: the tree's), before there is a depth network trees are grown to the full. Raises ValueError for
    a turn of another name."""
    for turn, name in enumerate(turns):
        here = replace(limits, seed=limits.seed + 1000 * turn, progress=_share(limits.progress, turn, len(turns)))
        depth_net, size_net = depth.net if depth else None, size.net if size else None
        if name == "depth":
            bounds = tree if size or not start_nodes else (start_nodes, *tree[1:])
            depth = _depth_turn(lesson, bounds, sizes, size_net, here, depth_settings, every, depth_net)
        elif name == "size":
            size = _size_turn(lesson, tree, sizes, depth_net, here, size_settings, every, size_net)
        else:
            raise ValueError(f"ltd trains depth or size by turns, not {name!r}")
    return depth, size


def _depth_turn(
    lesson: Lesson,
    bounds: Action,
    sizes: tuple[int, ...],
    size_net: Net | None,
    limits: TrainingLimits,
    settings: PpoSettings,
    every: int,
    start: Mlp | None,
) -> TrainedActor:
    """``bounds``: the tree whose nodes are verified while there is no size network."""
    rule = Ltd(None, size_net, bounds, sizes=sizes)

    def environment() -> LtdDepth:
        return LtdDepth(lesson.train, lesson.latency, lesson.rate, bounds, rule.num_nodes, every, 1, limits.policy_ms)

    return learn(environment, lambda net: Ltd(net, size_net, bounds, every, sizes), lesson, limits, settings, start)


def _size_turn(
    lesson: Lesson,
    tree: Action,
    sizes: tuple[int, ...],
    depth_net: Net | None,
    limits: TrainingLimits,
    settings: PpoSettings,
    every: int,
    start: Mlp | None,
) -> TrainedActor:
    rule = Ltd(depth_net, None, tree, every)

    def environment() -> LtdSize:
        return LtdSize(lesson.train, lesson.latency, lesson.rate, tree, sizes, rule.should_expand, 1, limits.policy_ms)

    return learn(environment, lambda net: Ltd(depth_net, net, tree, every, sizes), lesson, limits, settings, start)


def _share(progress: Callable[[float], None], turn: int, turns: int) -> Callable[[float], None]:
    return lambda done: progress((turn + done) / turns)
