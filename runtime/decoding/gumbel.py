"""Sampling on the host: temperature and the Gumbel-max trick, with noise that depends on seed and position only.

The token with the largest sum of scaled logit and Gumbel noise has the wanted distribution. Logits differ in their last bits from tree to
tree; that changes the token only if two sums lie within 1e-5 of each other. The inverse CDF, which devices use, has a step at every token:
with a vocabulary of 49,152 and a long tail, one draw in a thousand fell on a neighbouring token.
"""

from __future__ import annotations

import secrets
from typing import Protocol

import numpy as np

from ..sampling_params import SamplingParams
from .path_rules import PathRules
from .sampling import Sampler, TargetOutput, greedy
from .truncation import truncate


def scratch_buffers(vocab: int) -> np.ndarray:
    """The working memory of draws, float64 [3, V], allocated once and shared by consecutive requests.

    Arrays of this size, allocated for every token, left holes in the heap that smaller objects then filled: a server grew by 2.5 KiB per
    request (docs/lab/memory.md).
    """
    return np.empty((3, vocab))


class GumbelDraws:
    """Draws tokens from rows of scores, as ``params`` say. ``scratch``: from `scratch_buffers`; no other draw may use it at the same
    time."""

    def __init__(self, params: SamplingParams, scratch: np.ndarray) -> None:
        self._params, self._scratch = params, scratch
        self._key = secrets.randbits(64) if params.seed is None else params.seed

    def __call__(self, scores: np.ndarray, position: int) -> int:
        """The token for ``position``. ``scores``: logits [V]; they may lie in the first row of ``scratch``."""
        scaled, noise, _ = self._scratch
        np.divide(scores, self._params.temperature, out=scaled, dtype=np.float64)
        truncate(scaled, self._params, self._scratch[1:])
        self._draw_noise(position, noise)
        return int(np.argmax(np.add(scaled, noise, out=noise)))

    def _draw_noise(self, position: int, noise: np.ndarray) -> None:
        """Fill ``noise`` with Gumbel noise; positions are 2**64 numbers apart in the generator's sequence."""
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=position << 64))
        generator.standard_exponential(out=noise)
        with np.errstate(divide="ignore"):  # an exponential of 0 gives infinite noise, which correctly wins
            np.negative(np.log(noise, out=noise), out=noise)


class GumbelMaxSampler:
    """A Sampler for one request that draws from the target's own scores."""

    def __init__(self, params: SamplingParams, scratch: np.ndarray) -> None:
        self._draw = GumbelDraws(params, scratch)

    def __call__(self, output: TargetOutput, row: int, position: int) -> int:
        return self._draw(output.scores(row), position)


class PathSampler:
    """A Sampler for one request whose scores depend on its answer so far. Greedy unless there is ``draw``.

    Every choice is the answer's next token: `accept` asks for no other. So the tokens of the path above a row are those chosen before.
    """

    def __init__(self, rules: PathRules, draw: GumbelDraws | None, scratch: np.ndarray) -> None:
        self._rules, self._draw, self._scores = rules, draw, scratch[0]

    def __call__(self, output: TargetOutput, row: int, position: int) -> int:
        scores = self._scores
        self._rules.apply(output.scores(row), scores)
        token = int(scores.argmax()) if self._draw is None else self._draw(scores, position)
        self._rules.push(token)
        return token


class MakeSampler(Protocol):
    """Makes the Sampler of a request. ``rules``: what changes its scores, if something does."""

    def __call__(self, params: SamplingParams, rules: PathRules | None = None) -> Sampler: ...


def host_samplers(vocab: int) -> MakeSampler:
    """Makes the Samplers of requests that run in one thread."""
    scratch = scratch_buffers(vocab)

    def make_sampler(params: SamplingParams, rules: PathRules | None = None) -> Sampler:
        if rules is not None:
            return PathSampler(rules, None if params.greedy else GumbelDraws(params, scratch), scratch)
        return greedy if params.greedy else GumbelMaxSampler(params, scratch)

    return make_sampler
