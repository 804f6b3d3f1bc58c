"""Drawing tokens on the host: the Gumbel-max trick, with noise that belongs to a seed and a position.

The token with the largest sum of scaled score and Gumbel noise has the wanted distribution, and stays the same where scores differ in their
last bits, as they do from tree to tree: two sums must come within 1e-5 of each other for that to matter. The inverse CDF, which devices
use, has a step at every token: with 49,152 of them and a long tail, one draw in a thousand fell on a neighbour's side.
"""

from __future__ import annotations

import secrets

import numpy as np

from ..sampling_params import SamplingParams
from .sampling import Scores

_NUCLEUS = 1024  # tokens that mostly hold the wanted mass: sorting a vocabulary takes milliseconds


def work_room(vocab: int) -> np.ndarray:
    """What draws compute in, float64 [3, V]: made once for all requests that follow each other. Arrays of this size that come and go with
    every token left holes in the heap, in which smaller things settled: a service grew by 2.5 KiB a request (docs/lab/memory.md)."""
    return np.empty((3, vocab))


class GumbelMax:
    """One request's draws; only rows on the accepted path are ever drawn. ``room``: of `work_room`, nobody else's during a draw."""

    def __init__(self, params: SamplingParams, room: np.ndarray) -> None:
        self._params, self._room = params, room
        self._key = secrets.randbits(64) if params.seed is None else params.seed

    def __call__(self, scores: Scores, row: int, position: int) -> int:
        scaled, noise, _ = self._room
        np.divide(scores.logits[row], self._params.temperature, out=scaled, dtype=np.float64)
        keep(scaled, self._params.top_k, self._params.top_p, self._room[1:])
        self._draw_noise(position, noise)
        return int(np.argmax(np.add(scaled, noise, out=noise)))

    def _draw_noise(self, position: int, noise: np.ndarray) -> None:
        """Gumbel noise; positions are 2**64 numbers apart in the generator's sequence."""
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=position << 64))
        generator.standard_exponential(out=noise)
        with np.errstate(divide="ignore"):  # an exponential of 0 would win, as it should
            np.negative(np.log(noise, out=noise), out=noise)


def keep(scaled: np.ndarray, top_k: int, top_p: float, room: np.ndarray) -> None:
    """Put minus infinity into ``scaled`` scores [V] outside the ``top_k`` likeliest (0: all) and, of these, outside the smallest set that
    holds ``top_p`` of the mass, as transformers and vLLM do. Ties at a cut stay together. ``room``: [2, V] to compute in."""
    if 0 < top_k < len(scaled):
        room[0] = scaled
        room[0].partition(-top_k)
        _cut(scaled, room[0, -top_k])
    if top_p < 1:
        _cut(scaled, _nucleus(scaled, top_p, room))


def _cut(scaled: np.ndarray, least: np.floating) -> None:
    np.copyto(scaled, -np.inf, where=~(scaled >= least))


def _nucleus(scaled: np.ndarray, top_p: float, room: np.ndarray) -> np.floating:
    """The least score inside."""
    peak = scaled.max()
    wanted = top_p * _weights(scaled, peak, room[0]).sum()
    for count in (min(_NUCLEUS, len(scaled)), len(scaled)):
        room[0] = scaled
        if count < len(scaled):
            room[0].partition(-count)
        largest, mass = room[0, -count:], room[1, :count]
        largest.sort()
        _weights(largest[::-1], peak, mass)
        np.cumsum(mass, out=mass)
        if mass[-1] >= wanted:
            break
    least: np.floating = largest[-1 - min(int(np.searchsorted(mass, wanted)), len(largest) - 1)]
    return least


def _weights(scaled: np.ndarray, peak: np.floating, into: np.ndarray) -> np.ndarray:
    np.subtract(scaled, peak, out=into)
    return np.asarray(np.exp(into, out=into))
