"""Sampling on the host: temperature, top-k, top-p and the Gumbel-max trick, with noise that depends on seed and position only.

The token with the largest sum of scaled logit and Gumbel noise has the wanted distribution. Logits differ in their last bits from tree to
tree; that changes the token only if two sums lie within 1e-5 of each other. The inverse CDF, which devices use, has a step at every token:
with a vocabulary of 49,152 and a long tail, one draw in a thousand fell on a neighbouring token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np

from ..sampling_params import SamplingParams
from .sampling import Sampler, TargetOutput, greedy

_NUCLEUS_GUESS = 1024  # tokens that usually hold the wanted mass: sorting a whole vocabulary takes milliseconds


def scratch_buffers(vocab: int) -> np.ndarray:
    """The working memory of draws, float64 [3, V], allocated once and shared by consecutive requests.

    Arrays of this size, allocated for every token, left holes in the heap that smaller objects then filled: a server grew by 2.5 KiB per
    request (docs/lab/memory.md).
    """
    return np.empty((3, vocab))


class GumbelMaxSampler:
    """A Sampler for one request. ``scratch``: from `scratch_buffers`; no other draw may use it at the same time."""

    def __init__(self, params: SamplingParams, scratch: np.ndarray) -> None:
        self._params, self._scratch = params, scratch
        self._key = secrets.randbits(64) if params.seed is None else params.seed

    def __call__(self, output: TargetOutput, row: int, position: int) -> int:
        scaled, noise, _ = self._scratch
        np.divide(output.logits[row], self._params.temperature, out=scaled, dtype=np.float64)
        apply_top_k_top_p(scaled, self._params.top_k, self._params.top_p, self._scratch[1:])
        self._draw_noise(position, noise)
        return int(np.argmax(np.add(scaled, noise, out=noise)))

    def _draw_noise(self, position: int, noise: np.ndarray) -> None:
        """Fill ``noise`` with Gumbel noise; positions are 2**64 numbers apart in the generator's sequence."""
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=position << 64))
        generator.standard_exponential(out=noise)
        with np.errstate(divide="ignore"):  # an exponential of 0 gives infinite noise, which correctly wins
            np.negative(np.log(noise, out=noise), out=noise)


def host_samplers(vocab: int) -> Callable[[SamplingParams], Sampler]:
    """Makes the Samplers of requests that run in one thread."""
    scratch = scratch_buffers(vocab)
    return lambda params: greedy if params.greedy else GumbelMaxSampler(params, scratch)


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


def _exp(scaled: np.ndarray, peak: np.floating, out: np.ndarray) -> np.ndarray:
    """exp(scaled - peak), into ``out``."""
    np.subtract(scaled, peak, out=out)
    return np.asarray(np.exp(out, out=out))
