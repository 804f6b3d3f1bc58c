"""Which tokens may be drawn: top-k, top-p, min-p and typical-p, in this order, as transformers applies them. Pure numpy."""

from __future__ import annotations

import math

import numpy as np

from ..sampling_params import SamplingParams

_NUCLEUS_GUESS = 1024  # tokens that usually hold the wanted mass: sorting a whole vocabulary takes milliseconds


def truncate(scaled: np.ndarray, params: SamplingParams, scratch: np.ndarray) -> None:
    """Set to minus infinity, in place, the ``scaled`` logits [V] of tokens that ``params`` exclude. ``scratch``: [2, V]."""
    apply_top_k_top_p(scaled, params.top_k, params.top_p, scratch)
    if params.min_p > 0:
        _mask_below(scaled, scaled.max() + math.log(params.min_p))
    if params.typical_p < 1:
        _mask_untypical(scaled, params.typical_p, scratch)


def apply_top_k_top_p(scaled: np.ndarray, top_k: int, top_p: float, scratch: np.ndarray) -> None:
    """Set to minus infinity, in place, the ``scaled`` logits [V] outside the ``top_k`` likeliest tokens (0: all) and, of these, outside the
    smallest set with a total probability of ``top_p``, as transformers and vLLM do. Ties at a threshold stay. ``scratch``: [2, V]."""
    if 0 < top_k < len(scaled):
        scratch[0] = scaled
        scratch[0].partition(-top_k)
        _mask_below(scaled, scratch[0, -top_k])
    if top_p < 1:
        _mask_below(scaled, _top_p_threshold(scaled, top_p, scratch))


def _mask_below(scaled: np.ndarray, threshold: np.floating) -> None:
    np.copyto(scaled, -np.inf, where=~(scaled >= threshold))


def _top_p_threshold(scaled: np.ndarray, top_p: float, scratch: np.ndarray) -> np.floating:
    """The smallest logit inside the nucleus."""
    peak = scaled.max()
    wanted = top_p * _exp(scaled, peak, scratch[0]).sum()
    for count in (min(_NUCLEUS_GUESS, len(scaled)), len(scaled)):
        scratch[0] = scaled
        if count < len(scaled):
            scratch[0].partition(-count)
        largest, mass = scratch[0, -count:], scratch[1, :count]
        largest.sort()
        _exp(largest[::-1], peak, mass)
        np.cumsum(mass, out=mass)
        if mass[-1] >= wanted:
            break
    threshold: np.floating = largest[-1 - min(int(np.searchsorted(mass, wanted)), len(largest) - 1)]
    return threshold


def _mask_untypical(scaled: np.ndarray, mass: float, scratch: np.ndarray) -> None:
    """Locally typical sampling (Meister et al. 2022): keep the tokens whose surprise is closest to the distribution's entropy, as few as
    have a total probability of ``mass``. Ties at the threshold stay."""
    kept = np.flatnonzero(scaled > -np.inf)
    values, weights, distance = scaled[kept], scratch[0, : len(kept)], scratch[1, : len(kept)]
    peak = values.max(initial=-np.inf)
    if not np.isfinite(peak):  # they are not numbers; check_logits says so
        return
    total = _exp(values, peak, weights).sum()
    np.subtract(peak + math.log(total), values, out=distance)  # the surprise of each token
    entropy = np.dot(weights, distance) / total
    np.abs(np.subtract(distance, entropy, out=distance), out=distance)
    order = np.argsort(distance, kind="stable")
    covered = np.cumsum(weights[order])
    threshold = distance[order[min(int(np.searchsorted(covered, mass * total)), len(order) - 1)]]
    scaled[kept[distance > threshold]] = -np.inf


def _exp(scaled: np.ndarray, peak: np.floating, out: np.ndarray) -> np.ndarray:
    """exp(scaled - peak), into ``out``."""
    np.subtract(scaled, peak, out=out)
    return np.asarray(np.exp(out, out=out))
