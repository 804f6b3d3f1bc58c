"""Drawing tokens on the host: the Gumbel-max trick, with noise that belongs to a seed and a position.

The token with the largest sum of scaled score and Gumbel noise has the wanted distribution, and stays the same where scores differ in their
last bits, as they do from tree to tree: two sums must come within 1e-5 of each other for that to matter. The inverse CDF, which devices
use, has a step at every token: with 49,152 of them and a long tail, one draw in a thousand fell on a neighbour's side.
"""

from __future__ import annotations

import secrets

import numpy as np

from .sampling import Sampling, Scores

_NUCLEUS = 1024  # tokens that mostly hold the wanted mass: sorting a vocabulary takes milliseconds


class GumbelMax:
    """One request's draws; only rows on the accepted path are ever drawn."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._key = secrets.randbits(64) if sampling.seed is None else sampling.seed

    def __call__(self, scores: Scores, row: int, position: int) -> int:
        scaled = scores.logits[row].astype(np.float64) / self._sampling.temperature
        return int(np.argmax(kept(scaled, self._sampling.top_k, self._sampling.top_p) + self._noise(position, len(scaled))))

    def _noise(self, position: int, count: int) -> np.ndarray:
        """Gumbel noise, float64 [count]; positions are 2**64 numbers apart in the generator's sequence."""
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=position << 64))
        with np.errstate(divide="ignore"):  # an exponential of 0 would win, as it should
            return np.asarray(-np.log(generator.standard_exponential(count)))


def kept(scaled: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """``scaled`` scores [V] with minus infinity for those outside the ``top_k`` likeliest (0: all) and, of these, outside the smallest set
    that holds ``top_p`` of the mass, as transformers and vLLM do. Ties at a cut stay together."""
    if 0 < top_k < len(scaled):
        scaled = _from(scaled, np.partition(scaled, -top_k)[-top_k])
    if top_p < 1:
        scaled = _from(scaled, _nucleus(scaled, top_p))
    return scaled


def _from(scaled: np.ndarray, least: np.floating) -> np.ndarray:
    return np.where(scaled >= least, scaled, -np.inf)


def _nucleus(scaled: np.ndarray, top_p: float) -> np.floating:
    """The least score inside."""
    peak = scaled.max()
    wanted = top_p * np.exp(scaled - peak).sum()
    for count in (_NUCLEUS, len(scaled)):
        largest = np.sort(np.partition(scaled, -count)[-count:] if count < len(scaled) else scaled)[::-1]
        mass = np.cumsum(np.exp(largest - peak))
        if mass[-1] >= wanted:
            break
    least: np.floating = largest[min(int(np.searchsorted(mass, wanted)), len(largest) - 1)]
    return least
