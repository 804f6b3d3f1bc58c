"""Fits the closed form to recorded answers: how often a candidate is right, what a level gains, what time is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy import Calibration, CostModel, LatencyModel

from .simulation import Answers, Replay, replay

GAINS = (0.25, 0.35, 0.5, 0.7, 1.0)
LEAST = -12.0  # candidates below are never right
RIDGE = 1e-3
ROUNDS = 3  # of the exchange rate's iteration


def fit_chances(answers: Answers, width: int) -> tuple[float, float, float]:
    """Slope, level and bias of P(right) = sigmoid(slope score + level l + bias), by Newton's method on the likelihood."""
    rows, labels = [], []
    for traces in answers:
        trace = traces[width]
        kept = trace.scores > LEAST
        levels = np.broadcast_to(trace.levels, trace.scores.shape)
        rows.append(np.stack([trace.scores[kept], levels[kept], np.ones(int(kept.sum()))], 1))
        labels.append(trace.on_path()[kept])
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(labels).astype(np.float64)
    weights = np.array([1.0, 0.0, 0.0])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-x @ weights))
        curvature = x.T @ (x * (chance * (1 - chance))[:, None]) + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, x.T @ (y - chance) - RIDGE * weights)
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return float(weights[0]), float(weights[1]), float(weights[2])


def fit_cost_model(
    answers: Answers,
    latency: LatencyModel,
    trees: Sequence[tuple[int, int, int]],
    rate: float,
    sizes: tuple[int, ...] | None,
) -> tuple[Calibration, Replay]:
    """The best closed form within one of ``trees`` (largest nodes, depth, width). ``rate``: the exchange rate to start from, the best fixed
    tree's."""
    best: tuple[Calibration, Replay] | None = None
    for tree in trees:
        chances = fit_chances(answers, tree[2])
        here = rate
        for _ in range(ROUNDS):
            tried = [Calibration(*chances, gain, here, tree) for gain in GAINS]
            results = [(each, replay(CostModel(each, latency, sizes), answers, latency)) for each in tried]
            found = max(results, key=lambda result: result[1].rate)
            if best is None or found[1].rate > best[1].rate:
                best = found
            here = found[1].rate
    assert best is not None
    return best
