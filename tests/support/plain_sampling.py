"""Sampling written plainly, in float64 and by sorting: what every sampler must agree with, token for token where it is seeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np

from runtime.decoding.path_rules import Constrained, PathRules
from runtime.sampling_params import SamplingParams

from .constraints import allowed_after


def letters(words: Sequence[str]) -> list[list[int]]:
    """The toy's tokens of words: a is 0."""
    return [[ord(letter) - 97 for letter in word] for word in words]


def toy_rules(
    params: SamplingParams, prompt: Sequence[int], stop_tokens: Collection[int], constraint: Constrained | None = None
) -> PathRules | None:
    """What a Decoder makes of ``params``, with the toy's tokens of bad words."""
    return PathRules(params, prompt, stop_tokens, letters(params.bad_words), constraint) if params.changes_scores else None


def ruled(
    logits: np.ndarray, prompt: Sequence[int], answer: Sequence[int], params: SamplingParams, stop_tokens: Collection[int]
) -> np.ndarray:
    """The scores [V] after bad words, logit_bias, min_tokens, penalties and the toy's constraint."""
    scores = [float(each) for each in logits]
    for word in letters(params.bad_words):
        if list(answer)[len(answer) - len(word) + 1 :] == word[:-1] and len(answer) >= len(word) - 1:
            scores[word[-1]] = -np.inf
    for token, bias in params.biases.items():
        scores[token] += bias
    for token in stop_tokens if len(answer) < params.min_tokens else ():
        scores[token] = -np.inf
    for token in {*prompt, *answer}:
        factor = params.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token, count in Counter(answer).items():
        scores[token] -= params.frequency_penalty * count + params.presence_penalty
    if params.constraint is None:
        return np.array(scores)
    allowed = allowed_after(params, answer)
    constrained = np.where(allowed, scores, -np.inf)
    return constrained if np.isfinite(constrained).any() else np.where(allowed, logits, -np.inf).astype(np.float64)


def probabilities(scores: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution [V] after temperature, top-k, top-p, min-p and typical-p, each applied to what the one before kept."""
    scaled = scores / params.temperature
    weights = np.exp(scaled - scaled.max())

    def keep(allowed: np.ndarray) -> None:
        weights[~allowed] = 0
        weights[:] = weights / weights.sum()

    keep(np.isfinite(scaled))
    if params.top_k:
        keep(weights >= np.sort(weights)[::-1][min(params.top_k, len(weights)) - 1])
    if params.top_p < 1:
        ordered = np.sort(weights)[::-1]
        keep(weights >= ordered[int(np.searchsorted(np.cumsum(ordered), params.top_p))])
    if params.min_p:
        keep(weights >= params.min_p * weights.max() * (1 - 1e-12))
    if params.typical_p < 1:
        surprise = -np.log(weights, where=weights > 0, out=np.full(len(weights), -np.inf))
        entropy = sum(weight * own for weight, own in zip(weights, surprise, strict=True) if weight > 0)
        distance = np.where(weights > 0, np.abs(surprise - entropy), np.inf)
        order = np.argsort(distance, kind="stable")
        last = min(int((np.cumsum(weights[order]) < params.typical_p).sum()), int((weights > 0).sum()) - 1)
        keep(distance <= distance[order[last]])
    return weights


def plain_answer(
    logits_of: Callable[[list[int]], np.ndarray], prompt: Sequence[int], params: SamplingParams, stop_tokens: Collection[int], limit: int
) -> list[int]:
    """The tokens of plain decoding: at most ``limit``, up to the first of ``stop_tokens``. ``logits_of``: the target."""
    answer: list[int] = []
    while len(answer) < limit and not (answer and answer[-1] in stop_tokens):
        scores = ruled(logits_of([*prompt, *answer]), prompt, answer, params, stop_tokens)
        if not params.greedy:
            noise = np.random.Generator(np.random.Philox(key=params.seed, counter=(len(prompt) + len(answer)) << 64))
            kept = probabilities(scores, params) > 0
            scores = np.where(kept, scores / params.temperature, -np.inf) - np.log(noise.standard_exponential(len(scores)))
        answer.append(int(np.argmax(scores)))
    return answer


def any_rules(random: np.random.Generator, vocab: int, max_new_tokens: int) -> SamplingParams:
    """Random parameters, each of them set half of the time."""

    def maybe(**fields: object) -> dict[str, object]:
        return {name: value for name, value in fields.items() if random.random() < 0.5}

    drawing = {} if random.random() < 0.4 else {"temperature": float(random.uniform(0.3, 1.8)), "seed": int(random.integers(1000))}
    truncating = maybe(
        top_k=int(random.integers(1, vocab)),
        top_p=float(random.uniform(0.3, 1)),
        min_p=float(random.uniform(0, 0.5)),
        typical_p=float(random.uniform(0.3, 1)),
    )
    rules = maybe(
        presence_penalty=float(random.uniform(-2, 2)),
        frequency_penalty=float(random.uniform(-2, 2)),
        repetition_penalty=float(random.uniform(0.7, 1.8)),
        logit_bias={int(token): float(random.uniform(-5, 5)) for token in random.integers(0, vocab, 3)},
        min_tokens=int(random.integers(0, max_new_tokens + 1)),
        bad_words=["".join(chr(97 + token) for token in random.integers(0, vocab - 1, size)) for size in (1, 2, 2, 2, 3)],
    )
    return SamplingParams(max_new_tokens=max_new_tokens, **{**drawing, **truncating, **rules})  # type: ignore[arg-type]
