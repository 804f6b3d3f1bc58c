"""Records which draft tokens every possible tree would have had accepted, at every position of a generated answer.

Decoding is lossless, so the answer does not depend on the trees and is generated once. At each position the draft then grows a tree to full
depth, and the known answer tells which nodes are on its path. This covers *every* depth and size at once, because the best n nodes of a
tree are among its best n + 1 (RADAR, arXiv 2512.14069; EAGLE-2's reranking nests in the same way).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime import Decoder
from runtime.decoding.target import Target
from runtime.drafters.draft_model import ModelDrafter

CHUNK = 32  # tokens of the answer in one target pass


@dataclass(frozen=True)
class Trace:
    """An answer of T + 1 tokens and the draft trees of one width at its positions 0 to T - 1.

    prompt_tokens: number of tokens before the answer.
    scores: float32 [T, C], summed log-probabilities of the C candidates of a full tree (root left out).
    levels: int8 [C], level of each candidate, 1 for the root's children.
    path: int16 [T, depth], index of the candidate on the answer's path at each level, -1 if there is none.
    features: float16 [T, F], the target's features from which each tree's root was chosen.
    """

    prompt_tokens: int
    width: int
    scores: np.ndarray
    levels: np.ndarray
    path: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def depth(self) -> int:
        return int(self.path.shape[1])

    def on_path(self) -> np.ndarray:
        """bool [T, C]: which candidates are on the answer's path."""
        marks = np.zeros(self.scores.shape, bool)
        for level in range(self.depth):
            positions = np.flatnonzero(self.path[:, level] >= 0)
            marks[positions, self.path[positions, level]] = True
        return marks


def trace_answer(decoder: Decoder, prompt: Sequence[int], answer: Sequence[int], depth: int, width: int) -> Trace:
    """Grow a draft tree at every position of ``answer`` but the last. Raises ValueError if the engine has no EAGLE-3 draft or the answer
    has fewer than two tokens."""
    target, drafter = decoder.models.target, decoder.models.model_drafter
    if drafter is None:
        raise ValueError("traces need an EAGLE-3 draft")
    if len(answer) < 2:
        raise ValueError("the answer is too short")
    levels = np.concatenate([np.full(width if level == 0 else width**2, level + 1, np.int8) for level in range(depth)])
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for position, features in _positions(target, drafter, prompt, answer[:-1]):
        scores, tokens, parents = drafter.pool(answer[position], depth, width)
        path = match_path(tokens, parents, answer[position + 1 : position + 1 + depth], depth)
        rows.append((scores[1:].copy(), path, features.astype(np.float16)))
    scores, path, features = (np.stack(column) for column in zip(*rows, strict=True))
    return Trace(len(prompt), width, scores, levels, path, features)


def _positions(target: Target, drafter: ModelDrafter, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Bring target and drafter to each position of ``answer`` in turn, where its token is the root of the next tree. Yields the position
    and the target's features [F] from which that token was chosen."""
    target.cache.truncate(0)
    drafter.begin()
    features = np.zeros(0, np.float32)
    for chunk, output in target.prefill(prompt):
        drafter.extend(chunk, output, range(len(chunk)))
        features = output.features[len(chunk) - 1].copy()
    for start in range(0, len(answer), CHUNK):
        tokens = answer[start : start + CHUNK]
        output = target.verify_chain(tokens)
        after = output.features.copy()
        for row, token in enumerate(tokens):
            yield start + row, features
            drafter.extend([token], output, [row])
            features = after[row]
        target.commit(range(len(tokens)))


def match_path(tokens: np.ndarray, parents: np.ndarray, following: Sequence[int], depth: int) -> np.ndarray:
    """int16 [depth]: index of the candidate (root left out) that matches each token of ``following`` along one path, -1 from the first
    token without a match."""
    path, parent = np.full(depth, -1, np.int16), 0
    for level, token in enumerate(following):
        matches = np.flatnonzero((parents == parent) & (tokens == token))
        if not len(matches):
            break
        parent = int(matches[0])
        path[level] = parent - 1
    return path
