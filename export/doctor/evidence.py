"""What the served engine does on a few prompts: its answers, the features it captured, and what its draft guessed at every position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime import Decoder, SamplingParams
from runtime.errors import BenchError

from ..rotation.orthogonal import rotated

DEPTH = 3  # levels that the draft guesses at every position
CHUNK = 32  # tokens of an answer in one pass of the target
FEWEST = 60  # positions; with fewer every interval is too wide to say anything
Progress = Callable[[str, int, int], None]
"""(step, number done, total)"""


@dataclass(frozen=True)
class Answer:
    """A greedy answer. ``tokens`` [n]: prompt and answer. ``first``: the first row of the draft that guesses a token of the answer; row t
    reads the feature of position t and token t + 1 and guesses token t + 2. ``features`` [n, F] float32, in the checkpoint's own channels.
    ``choices`` [n]: the token that the target prefers after each position, from the prompt's last one on. ``guesses``: what the served
    draft guessed as a chain of DEPTH in row ``first`` and those after it."""

    tokens: np.ndarray
    first: int
    features: np.ndarray
    choices: np.ndarray
    guesses: np.ndarray

    def labels(self, level: int) -> np.ndarray:
        """What the rows from ``first`` on should guess at ``level`` (from 1), given what the target wrote."""
        return self.choices[self.first + level : -1]


def collect(decoder: Decoder, prompts: Sequence[Sequence[int]], new_tokens: int, progress: Progress) -> list[Answer]:
    """Answers to ``prompts`` by an engine with an EAGLE-3 draft. Raises BenchError if they are too short to judge a draft by."""
    answers = []
    for done, prompt in enumerate(prompts):
        progress("asking", done, len(prompts))
        answer = decoder.generate(prompt, SamplingParams(max_new_tokens=new_tokens)).tokens
        if len(answer) > DEPTH:
            answers.append(_followed(decoder, prompt, answer))
    progress("asking", len(prompts), len(prompts))
    if sum(len(each.labels(1)) for each in answers) < FEWEST:
        raise BenchError(f"the answers have fewer than {FEWEST} tokens together, too few to judge a draft by — give more with --prompts")
    return answers


def _followed(decoder: Decoder, prompt: Sequence[int], answer: Sequence[int]) -> Answer:
    features, guesses = list[np.ndarray](), list[np.ndarray]()
    for part in _steps(decoder, prompt, answer):
        (features if part.ndim == 2 else guesses).append(part)
    tokens = np.array([*prompt, *answer])
    streams = np.concatenate(features).astype(np.float32)
    if decoder.manifest.rotated:
        shape, width = streams.shape, decoder.manifest.shape.hidden
        streams = _turned_back(streams.reshape(-1, width)).reshape(shape)
    return Answer(tokens, len(prompt) - 1, streams, np.append(tokens[1:], -1), np.stack(guesses))


def _steps(decoder: Decoder, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[np.ndarray]:
    """The features of every chunk [n, F], and the guesses [DEPTH] at every position that has a next one."""
    target, drafter = decoder.models.target, decoder.models.model_drafter
    assert drafter is not None  # the decoder was opened with --draft eagle
    target.cache.truncate(0)
    drafter.begin()
    for chunk, output in target.prefill(prompt):
        drafter.extend(chunk, output, range(len(chunk)))
        yield output.features.copy()
    for start in range(0, len(answer), CHUNK):
        tokens = answer[start : start + CHUNK]
        output = target.verify_chain(tokens)
        features = output.features.copy()
        yield features
        for row, token in enumerate(tokens):
            if start + row < len(answer) - 1:
                yield drafter.pool(token, DEPTH, 1)[1][1:].copy()
                drafter.extend([token], output, [row])
        target.commit(range(len(tokens)))


def _turned_back(rows: np.ndarray) -> np.ndarray:
    """Rows [n, H] of a rotated stream, in the checkpoint's channels."""
    matrix = rotated(np.eye(rows.shape[-1]))
    return np.asarray(rows @ matrix.T, np.float32)
