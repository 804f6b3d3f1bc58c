"""Runs PPO (stable-baselines3) in an environment and keeps the best weights seen.

The best weights are those whose policy replays fastest on the validation answers, with the network's own time charged. The last weights
are often not the best: the training curves in both papers fall again after their peak (LTD section 4; Re-SpS keeps its last weights
without such a check). Checks are spread over the time or the steps of a run, whichever ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from policy import LatencyModel, Net, Policy

from ..replay.simulation import Answers, replay
from .nets import Activation, Layers, Mlp, Scaling

EVALUATIONS = 25  # of the weights in one training run, evenly over it
EVALUATING = 0.25  # largest share of a run's time that its checks may take


@dataclass(frozen=True)
class PpoSettings:
    """PPO's hyperparameters. The others are stable-baselines3's defaults: clip 0.2, GAE lambda 0.95, value coefficient 0.5, gradient clip
    0.5.

    rollout: decisions of all ``envs`` together between updates. hidden, critic: layer widths of the actor and of the critic.
    decay: let the learning rate rise during the first ``warm_up`` (a share of the
    steps) and then fall to zero.
    """

    learning_rate: float
    rollout: int
    batch: int
    epochs: int
    entropy: float
    gamma: float
    hidden: tuple[int, ...]
    critic: tuple[int, ...]
    activation: Activation
    envs: int
    decay: bool = False
    warm_up: float = 0.01


@dataclass(frozen=True)
class TrainingLimits:
    """Limits and options of one training run. ``steps``: number of decisions. ``policy_ms``: milliseconds of one call of the network in
    service. ``progress``: called with the share done."""

    steps: int
    seconds: float = float("inf")
    seed: int = 0
    policy_ms: float = 0.0
    progress: Callable[[float], None] = lambda _: None


@dataclass(frozen=True)
class TrainedActor:
    """The best weights of a training run. ``critic``: the layers of the critic at that time. ``rate``: tokens per millisecond on the
    validation answers; ``curve``: (number of decisions, rate) of every evaluation."""

    layers: Layers
    activation: Activation
    critic: Layers
    rate: float
    curve: tuple[tuple[int, float], ...]

    @property
    def net(self) -> Mlp:
        return Mlp(self.layers, self.activation)


@dataclass(frozen=True)
class TrainingData:
    """What networks are trained on and evaluated with. ``rate``: the exchange rate, tokens per millisecond of the best fixed tree."""

    train: Answers
    validation: Answers
    latency: LatencyModel
    rate: float


def train_ppo(
    environment: Callable[[], Any],
    make_policy: Callable[[Net], Policy],
    data: TrainingData,
    limits: TrainingLimits,
    settings: PpoSettings,
    start: TrainedActor | None = None,
    scaling: Scaling | None = None,
) -> TrainedActor:
    """Train a network in ``environment``, from the weights of ``start`` or from random ones. ``make_policy``: the policy that runs with a
    network in service. ``scaling``: of the observations; it becomes part of the network's first layer. torch uses one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = _ppo(environment, settings, limits, scaling)
        if start:
            _load(model, start)
        evaluation = _Evaluation(make_policy, data, limits, settings.activation, scaling)
        model.learn(limits.steps, callback=evaluation)
        return evaluation.best()
    finally:
        torch.set_num_threads(threads)


def replay_rate(make_policy: Callable[[Net], Policy], net: Net, answers: Answers, latency: LatencyModel, policy_ms: float) -> float:
    """Tokens per millisecond of the policy with this network, with the time of the network's calls included."""
    calls = 0

    def counted(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return net(x)

    result = replay(make_policy(counted), answers, latency)
    return result.tokens / (result.milliseconds + calls * policy_ms)


class _Evaluation(BaseCallback):  # type: ignore[misc]
    """Evaluates the weights before the first update, after the last one, and at most `EVALUATIONS` times between. Ends training when time
    is up."""

    def __init__(
        self,
        make_policy: Callable[[Net], Policy],
        data: TrainingData,
        limits: TrainingLimits,
        activation: Activation,
        scaling: Scaling | None,
    ) -> None:
        super().__init__()
        self._make_policy, self._data, self._limits, self._activation, self._scaling = make_policy, data, limits, activation, scaling
        self._next, self._started = 0.0, perf_counter()
        self._best: TrainedActor | None = None
        self._curve: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return perf_counter() - self._started < self._limits.seconds

    @property
    def _share(self) -> float:
        """Of the run that is done."""
        return max(int(self.num_timesteps) / self._limits.steps, (perf_counter() - self._started) / self._limits.seconds)

    def _on_rollout_start(self) -> None:
        if (share := self._share) >= self._next:
            self._evaluate()
            self._next = self._share + max(1 / EVALUATIONS, (self._share - share) / EVALUATING)

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        net = Mlp(actor_layers(self.model, self._scaling), self._activation)
        rate = replay_rate(self._make_policy, net, self._data.validation, self._data.latency, self._limits.policy_ms)
        self._curve.append((self.num_timesteps, rate))
        if self._best is None or rate > self._best.rate:
            self._best = TrainedActor(net.layers, net.activation, _weights(_critic(self.model)), rate, ())
        self._limits.progress(min(1.0, self._share))

    def best(self) -> TrainedActor:
        assert self._best is not None
        return replace(self._best, curve=tuple(self._curve))


class _Scaled(BaseFeaturesExtractor):  # type: ignore[misc]
    """Scales the input."""

    def __init__(self, observation_space: Any, scaling: Scaling) -> None:
        super().__init__(observation_space, int(observation_space.shape[0]))
        self._mean, self._deviation = torch.from_numpy(scaling.mean), torch.from_numpy(scaling.deviation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self._mean) / self._deviation


def _ppo(environment: Callable[[], Any], settings: PpoSettings, limits: TrainingLimits, scaling: Scaling | None) -> PPO:
    started = perf_counter()

    def learning_rate(left: float) -> float:
        """``left``: share of the steps still to do. If time ends the run before the steps do, the share of the time left counts."""
        if not settings.decay:
            return settings.learning_rate
        left = min(left, 1 - (perf_counter() - started) / limits.seconds)
        return settings.learning_rate * max(0.0, min(left / (1 - settings.warm_up), max(1e-3, 1 - left) / settings.warm_up))

    extractor = {"features_extractor_class": _Scaled, "features_extractor_kwargs": {"scaling": scaling}} if scaling else {}
    return PPO(
        "MlpPolicy",
        DummyVecEnv([environment] * settings.envs),
        learning_rate=learning_rate,
        n_steps=settings.rollout // settings.envs,
        batch_size=settings.batch,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        ent_coef=settings.entropy,
        seed=limits.seed,
        device="cpu",
        policy_kwargs={
            "net_arch": {"pi": list(settings.hidden), "vf": list(settings.critic)},
            "activation_fn": torch.nn.Tanh if settings.activation == "tanh" else torch.nn.ReLU,
            **extractor,
        },
    )


def _actor(model: PPO) -> list[Any]:
    """The actor's linear layers."""
    return [*_linear(model.policy.mlp_extractor.policy_net), model.policy.action_net]


def _critic(model: PPO) -> list[Any]:
    """The critic's linear layers."""
    return [*_linear(model.policy.mlp_extractor.value_net), model.policy.value_net]


def _linear(layers: Any) -> list[Any]:
    return [layer for layer in layers if isinstance(layer, torch.nn.Linear)]


def _weights(layers: list[Any]) -> Layers:
    """Copies."""
    return tuple((layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in layers)


def actor_layers(model: PPO, scaling: Scaling | None = None) -> Layers:
    """Copies of the actor's weights, with the scaling of its input in the first layer."""
    layers = _weights(_actor(model))
    return scaling.into(layers) if scaling else layers


def _load(model: PPO, start: TrainedActor) -> None:
    """Continue with an actor and its critic: a critic that knows nothing would drive the actor away from what it has learned."""
    with torch.no_grad():
        for linears, layers in ((_actor(model), start.layers), (_critic(model), start.critic)):
            for layer, (weight, bias) in zip(linears, layers, strict=True):
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.copy_(torch.from_numpy(bias))
