"""Trains the networks of the two papers on recorded answers, with the papers' hyperparameters: Re-SpS' one and LTD's two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from policy import ActionPersistence, FixedPolicy, Policy
from policy.ltd import Ltd
from policy.resps import PERSISTENCE, TRAINING_PERSISTENCE, Action, Net, Resps, state_function

from ..replay.simulation import any_trace, observation_at
from .environment import LtdDepthEnv, LtdSizeEnv, RespsEnv
from .nets import Scaling
from .ppo import PpoSettings, TrainedActor, TrainingData, TrainingLimits, train_ppo

RESPS = PpoSettings(3e-4, 64, 32, 4, 0.01, 0.0, (128, 128), (128, 128), "tanh", envs=4)
"""The paper's "standard" hyperparameters. Its gamma of 0.95 has no effect in its code, where each window ends an episode, so it is 0
here."""

RESPS_MAX_ENTROPY = replace(RESPS, entropy=0.1)
"""The paper's default."""

LTD_DEPTH = PpoSettings(1e-3, 2048, 256, 10, 0.01, 0.999, (1024,), (1024, 256), "relu", envs=16, decay=True)
"""The paper's hyperparameters, but 10 epochs instead of 20: we have thousands of positions, not millions, so they repeat often anyway."""

LTD_SIZE = replace(LTD_DEPTH, gamma=0.0, hidden=(1024, 256))
"""One decision per round, so gamma has nothing to discount."""


def train_resps(
    data: TrainingData,
    actions: tuple[Action, ...],
    limits: TrainingLimits,
    settings: PpoSettings = RESPS,
    wrap: Callable[[Policy], Policy] = lambda slow: slow,
    state: str = "features",
) -> TrainedActor:
    """Train Re-SpS' network (arXiv 2601.12212) to choose from ``actions`` by ``state``.

    ``wrap``: puts another policy around Re-SpS and around the fixed trees it chooses; resps+ltd is trained with
    ``lambda slow: Ltd(..., slow=slow)``.
    """

    def environment() -> RespsEnv:
        return RespsEnv(
            data.train,
            data.latency,
            data.rate,
            actions,
            TRAINING_PERSISTENCE,
            limits.policy_ms,
            lambda spec: wrap(FixedPolicy(spec)),
            state,
        )

    def policy_of(net: Net) -> Policy:
        return wrap(ActionPersistence(Resps(net, actions, state=state), PERSISTENCE))

    seen = [observation_at(traces, position) for traces in data.train for position in range(len(any_trace(traces)))]
    scaling = Scaling.of(np.stack([state_function(state)(each) for each in seen]))
    return train_ppo(environment, policy_of, data, limits, settings, scaling=scaling)


def train_ltd(
    data: TrainingData,
    tree: Action,
    sizes: tuple[int, ...],
    limits: TrainingLimits,
    phases: Sequence[str] = ("depth", "size", "depth"),
    depth: TrainedActor | None = None,
    size: TrainedActor | None = None,
    start_nodes: int | None = None,
    every: int = 1,
    depth_settings: PpoSettings = LTD_DEPTH,
    size_settings: PpoSettings = LTD_SIZE,
) -> tuple[TrainedActor | None, TrainedActor | None]:
    """Train LTD's depth and size networks in alternation (co-training, arXiv 2603.01639), and return both; None for one never trained.

    ``tree``: the largest tree. ``sizes``: numbers of nodes that the size network chooses from. ``phases``: which network each phase trains,
    "depth" or "size", while the other one stays as it is. A phase starts from its network's last weights, the first one from ``depth`` or
    ``size``. ``limits`` hold for each phase. ``every``: number of levels between two decisions of the depth network. As long as there is no
    size network, ``start_nodes`` nodes are verified (default: those of ``tree``); without a depth network trees grow to full depth. Raises
    ValueError for a phase of another name.
    """
    for number, phase in enumerate(phases):
        phase_limits = replace(limits, seed=limits.seed + 1000 * number, progress=_phase_progress(limits.progress, number, len(phases)))
        depth_net, size_net = (actor.net if actor else None for actor in (depth, size))
        if phase == "depth":
            bounds = tree if size or not start_nodes else (start_nodes, *tree[1:])
            depth = _train_depth(data, bounds, sizes, size_net, phase_limits, depth_settings, every, depth)
        elif phase == "size":
            size = _train_size(data, tree, sizes, depth_net, phase_limits, size_settings, every, size)
        else:
            raise ValueError(f"a phase of LTD's training is depth or size, not {phase!r}")
    return depth, size


def _train_depth(
    data: TrainingData,
    bounds: Action,
    sizes: tuple[int, ...],
    size_net: Net | None,
    limits: TrainingLimits,
    settings: PpoSettings,
    every: int,
    start: TrainedActor | None,
) -> TrainedActor:
    """``bounds``: the largest tree; without a size network its number of nodes is verified."""
    other = Ltd(None, size_net, bounds, sizes=sizes)

    def environment() -> LtdDepthEnv:
        return LtdDepthEnv(data.train, data.latency, data.rate, bounds, other.num_nodes, every, 1, limits.policy_ms)

    return train_ppo(environment, lambda net: Ltd(net, size_net, bounds, every, sizes), data, limits, settings, start)


def _train_size(
    data: TrainingData,
    tree: Action,
    sizes: tuple[int, ...],
    depth_net: Net | None,
    limits: TrainingLimits,
    settings: PpoSettings,
    every: int,
    start: TrainedActor | None,
) -> TrainedActor:
    other = Ltd(depth_net, None, tree, every)

    def environment() -> LtdSizeEnv:
        return LtdSizeEnv(data.train, data.latency, data.rate, tree, sizes, other.should_expand, 1, limits.policy_ms)

    return train_ppo(environment, lambda net: Ltd(depth_net, net, tree, every, sizes), data, limits, settings, start)


def _phase_progress(progress: Callable[[float], None], number: int, phases: int) -> Callable[[float], None]:
    return lambda share: progress((number + share) / phases)
