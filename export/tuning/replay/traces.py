"""What every tree would have brought, at every position of answers that are already known.

The answer does not depend on the trees (that is losslessness), so it is written once. At each of its positions the draft then grows its
tree to full depth, and the known answer says which of its nodes are right: that labels *every* depth and size at once, because the best
n nodes of a tree are among its best n + 1 (reference: RADAR, arXiv 2512.14069, and the nesting of EAGLE-2's rerank).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime import Decoder, SamplingParams
from runtime.decoding.target import Target
from runtime.drafters.eagle import EagleDrafter

CHUNK = 32  # tokens of the answer that the target sees at once


@dataclass(frozen=True)
class Trace:
    """One answer of T + 1 tokens and the trees before its tokens 1 to T. ``prompt``: tokens before it.

    scores: float32 [T, pool], summed log-probabilities of the pool without its root. levels: int8 [pool], 1 for the root's children.
    right: int16 [T, depth], the pool's node on the true path at each level, -1 where there is none.
    features: float16 [T, F], the target's for the position before each tree's root.
    """

    prompt: int
    width: int
    scores: np.ndarray
    levels: np.ndarray
    right: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def depth(self) -> int:
        return int(self.right.shape[1])

    def on_path(self) -> np.ndarray:
        """bool [T, pool]: which candidates are on the answer's path."""
        marks = np.zeros(self.scores.shape, bool)
        for level in range(self.depth):
            found = np.flatnonzero(self.right[:, level] >= 0)
            marks[found, self.right[found, level]] = True
        return marks


def write_answer(decoder: Decoder, prompt: Sequence[int], tokens: int, sampling: SamplingParams) -> tuple[int, ...]:
    """The answer, by the fastest fixed tree there is: which one makes no difference to it."""
    return decoder.generate(prompt, replace(sampling, max_new_tokens=tokens)).tokens


def trace(decoder: Decoder, prompt: Sequence[int], answer: Sequence[int], depth: int, width: int) -> Trace:
    """Draft at every position of ``answer`` but the last. Raises ValueError when the engine has no draft or the answer no second token."""
    target, drafter = decoder.models.target, decoder.models.eagle
    if drafter is None:
        raise ValueError("traces need an EAGLE-3 draft")
    if len(answer) < 2:
        raise ValueError("the answer is too short")
    levels = np.concatenate([np.full(width if level == 0 else width**2, level + 1, np.int8) for level in range(depth)])
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for place, features in _positions(target, drafter, prompt, answer[:-1]):
        scores, tokens, parents = drafter.pool(answer[place], depth, width)
        rows.append((scores[1:].copy(), _right(tokens, parents, answer[place + 1 : place + 1 + depth], depth), features.astype(np.float16)))
    scores, right, features = (np.stack(column) for column in zip(*rows, strict=True))
    return Trace(len(prompt), width, scores, levels, right, features)


def _positions(target: Target, drafter: EagleDrafter, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Every place of ``answer`` whose token hangs as a root below all before it, with the features that the root was chosen from [F]."""
    target.cache.truncate(0)
    drafter.begin()
    features = np.zeros(0, np.float32)
    for chunk, scores in target.prefill(prompt):
        drafter.extend(chunk, scores, range(len(chunk)))
        features = scores.features[len(chunk) - 1].copy()
    for start in range(0, len(answer), CHUNK):
        tokens = answer[start : start + CHUNK]
        scores = target.verify_chain(tokens)
        after = scores.features.copy()
        for row, token in enumerate(tokens):
            yield start + row, features
            drafter.extend([token], scores, [row])
            features = after[row]
        target.commit(range(len(tokens)))


def _right(tokens: np.ndarray, parents: np.ndarray, following: Sequence[int], depth: int) -> np.ndarray:
    """Entries of the pool (without the root) that spell ``following``, level by level."""
    found, above = np.full(depth, -1, np.int16), 0
    for level, token in enumerate(following):
        here = np.flatnonzero((parents == above) & (tokens == token))
        if not len(here):
            break
        above = int(here[0])
        found[level] = above - 1
    return found
