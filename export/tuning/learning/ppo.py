"""PPO (stable-baselines3) in an environment, which keeps the weights that serve best.

What is kept is decided by `replay` of the deployed policy object on answers that were not trained on, as validation, with the network's own
time charged. Both papers' curves fall again after their best (LTD section 4; Re-SpS keeps its last weights unseen).
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
from .nets import EPSILON, Activation, Layers, Mlp

CHECKS = 25  # of the weights, evenly over the steps


@dataclass(frozen=True)
class PpoSettings:
    """PPO. ``rollout``: decisions of all ``envs`` together between updates; ``warm_up``: share of the steps until the full learning rate,
    which then falls to zero, both only with ``decay``; ``hidden`` is the actor's, ``critic`` the critic's. Clip 0.2, GAE lambda
    0.95 or inert, value coefficient and gradient clip 0.5 everywhere."""

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
    normalise: bool = False
    decay: bool = False
    warm_up: float = 0.01


@dataclass(frozen=True)
class TrainingLimits:
    """Of one training: decisions, and seconds if any. ``policy_ms``: what one call of a network costs in service."""

    steps: int
    seconds: float = float("inf")
    seed: int = 0
    policy_ms: float = 0.0
    progress: Callable[[float], None] = lambda _: None


@dataclass(frozen=True)
class TrainedActor:
    """The best weights met. ``rate``: tokens per millisecond on the validation answers; ``curve``: (decisions, rate) of every check."""

    layers: Layers
    activation: Activation
    normalise: bool
    rate: float
    curve: tuple[tuple[int, float], ...]

    @property
    def net(self) -> Mlp:
        return Mlp(self.layers, self.activation, self.normalise)


@dataclass(frozen=True)
class Lesson:
    """What is learned from and judged by: ``rate`` is the exchange rate, tokens per millisecond of the best fixed tree."""

    train: Answers
    validation: Answers
    latency: LatencyModel
    rate: float


def learn(
    environment: Callable[[], Any],
    deploy: Callable[[Net], Policy],
    lesson: Lesson,
    limits: TrainingLimits,
    settings: PpoSettings,
    start: Mlp | None = None,
) -> TrainedActor:
    """PPO in ``environment`` from ``start`` (default: fresh weights). ``deploy``: the policy that serves with a network. One thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = _ppo(environment, settings, limits)
        if start:
            _load(model, start)
        judge = _Judge(deploy, lesson, limits, settings)
        model.learn(limits.steps, callback=judge)
        return judge.finished()
    finally:
        torch.set_num_threads(threads)


def served_rate(deploy: Callable[[Net], Policy], net: Net, answers: Answers, latency: LatencyModel, policy_ms: float) -> float:
    """Tokens per millisecond with the network's calls paid."""
    calls = 0

    def counted(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return net(x)

    result = replay(deploy(counted), answers, latency)
    return result.tokens / (result.milliseconds + calls * policy_ms)


class _Judge(BaseCallback):  # type: ignore[misc]
    """Checks the weights before the first and after the last update and `CHECKS` times between; stops when time is up."""

    def __init__(self, deploy: Callable[[Net], Policy], lesson: Lesson, limits: TrainingLimits, settings: PpoSettings) -> None:
        super().__init__()
        self._deploy, self._lesson, self._limits, self._settings = deploy, lesson, limits, settings
        self._next, self._started = 0, perf_counter()
        self._best: TrainedActor | None = None
        self._curve: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return perf_counter() - self._started < self._limits.seconds

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next:
            self._check()
            self._next = self.num_timesteps + max(1, self._limits.steps // CHECKS)

    def _on_training_end(self) -> None:
        self._check()

    def _check(self) -> None:
        limits, normalise = self._limits, self._settings.normalise
        net = Mlp(layers_of(self.model), self._settings.activation, normalise)
        rate = served_rate(self._deploy, net, self._lesson.validation, self._lesson.latency, limits.policy_ms)
        self._curve.append((self.num_timesteps, rate))
        if self._best is None or rate > self._best.rate:
            self._best = TrainedActor(net.layers, net.activation, normalise, rate, ())
        limits.progress(min(1.0, max(self.num_timesteps / limits.steps, (perf_counter() - self._started) / limits.seconds)))

    def finished(self) -> TrainedActor:
        assert self._best is not None
        return replace(self._best, curve=tuple(self._curve))


class _Normalised(BaseFeaturesExtractor):  # type: ignore[misc]
    """`Mlp`'s scaling, for training."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, int(observation_space.shape[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def _ppo(environment: Callable[[], Any], settings: PpoSettings, limits: TrainingLimits) -> PPO:
    started = perf_counter()

    def rate(left: float) -> float:
        """``left``: share of the steps; a training that time will end cools down in time."""
        if not settings.decay:
            return settings.learning_rate
        left = min(left, 1 - (perf_counter() - started) / limits.seconds)
        return settings.learning_rate * max(0.0, min(left / (1 - settings.warm_up), max(1e-3, 1 - left) / settings.warm_up))

    extra = {"features_extractor_class": _Normalised} if settings.normalise else {}
    return PPO(
        "MlpPolicy",
        DummyVecEnv([environment] * settings.envs),
        learning_rate=rate,
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
            **extra,
        },
    )


def _linears(model: PPO) -> list[Any]:
    """The actor's layers."""
    return [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, torch.nn.Linear)] + [model.policy.action_net]


def layers_of(model: PPO) -> Layers:
    """Copies of the actor's weights."""
    return tuple((each.weight.detach().numpy().copy(), each.bias.detach().numpy().copy()) for each in _linears(model))


def _load(model: PPO, net: Mlp) -> None:
    with torch.no_grad():
        for each, (weight, bias) in zip(_linears(model), net.layers, strict=True):
            each.weight.copy_(torch.from_numpy(weight))
            each.bias.copy_(torch.from_numpy(bias))
