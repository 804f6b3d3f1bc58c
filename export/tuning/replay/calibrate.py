"""Fits the cost model to recorded answers: acceptance probabilities, the gain of one more level, and the rate to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from policy import Calibration, CostModel, LatencyModel

from .simulation import Answers, ReplayResult, replay

GAINS = (0.1, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)  # values tried for Calibration.gain
MIN_SCORE = -12.0  # log-probability; candidates below it are never accepted
RIDGE = 1e-3  # of the logistic regression
NEWTON_STEPS = 25


def fit_acceptance(answers: Answers, width: int) -> tuple[float, float, float]:
    """Logistic regression, by Newton's method: the probability that a candidate is on the answer's path is
    sigmoid(slope * score + level_weight * level + bias). Returns slope, level_weight and bias."""
    rows, labels = [], []
    for traces in answers:
        trace = traces[width]
        likely = trace.scores > MIN_SCORE
        levels = np.broadcast_to(trace.levels, trace.scores.shape)
        rows.append(np.stack([trace.scores[likely], levels[likely], np.ones(int(likely.sum()))], 1))
        labels.append(trace.on_path()[likely])
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(labels).astype(np.float64)
    weights = np.array([1.0, 0.0, 0.0])
    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-x @ weights))
        hessian = x.T @ (x * (probability * (1 - probability))[:, None]) + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(hessian, x.T @ (y - probability) - RIDGE * weights)
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
) -> tuple[Calibration, ReplayResult]:
    """The calibration with the best replay, and that replay.

    ``trees``: largest trees (nodes, depth, width) to try. ``rate``: the best fixed tree's tokens per millisecond. ``sizes``: numbers of
    nodes that may be verified (None: any).
    """
    best: tuple[Calibration, ReplayResult] | None = None
    for tree in trees:
        acceptance = fit_acceptance(answers, tree[2])
        for gain in GAINS:
            calibration = Calibration(*acceptance, gain, rate, tree)
            result = replay(CostModel(calibration, latency, sizes), answers, latency)
            if best is None or result.rate > best[1].rate:
                best = calibration, result
    assert best is not None
    return replace(best[0], rate=best[1].rate), best[1]
