"""The draft once more in numpy, over answers that are known, under any reading of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.arch import Arch
from ..checkpoints.draft_checkpoint import HEAD, DraftCheckpoint
from ..checkpoints.safetensors import Checkpoint
from ..graphs.precision import BACKENDS, ONNXRUNTIME
from ..parity.draft import reference_fuse, reference_pass
from .evidence import Answer

_EXACT = BACKENDS[ONNXRUNTIME]["fp32"]
LEAST, LEAST_NATS = 0.03, 0.03  # smaller gains, of the share of right guesses and of their log-probability, are not worth an export
WORKS = 0.25  # share of right guesses of a weak draft: trained on 5,000 conversations they have 0.36 (speculators), wrong ones 0.1
BLOCK = 8  # neighbouring positions are alike: an interval counts them as one observation


class HeldTarget:
    """A target whose rows stay in memory once they were read one by one: a draft reads the same few of its embedding again and again."""

    def __init__(self, plain: Checkpoint) -> None:
        self._plain, self._held = plain, dict[tuple[str, int], np.ndarray]()

    @property
    def arch(self) -> Arch:
        return self._plain.arch

    @property
    def path(self) -> Path:
        return self._plain.path

    @property
    def notes(self) -> tuple[str, ...]:
        return self._plain.notes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._plain.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if stop != start + 1:
            return self._plain.read(name, start, stop)
        if (name, start) not in self._held:
            self._held[name, start] = self._plain.read(name, start, stop)
        return self._held[name, start]

    def fingerprint(self) -> list[list[Any]]:
        return self._plain.fingerprint()


@dataclass(frozen=True)
class HeldDraft(DraftCheckpoint):
    """A draft whose tensors are in memory, where an alternative can change them."""

    held: Mapping[str, np.ndarray]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.held[name].shape if name in self.held else super().shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.held[name][start:stop] if name in self.held else super().read(name, start, stop)

    def with_tensors(self, **changed: np.ndarray) -> HeldDraft:
        return replace(self, held={**self.held, **changed})


def held_draft(draft: DraftCheckpoint) -> HeldDraft:
    """``draft`` in memory."""
    names = [name for name in draft._names if name not in ("d2t", "t2d")]
    held = {name: draft.read(name) for name in {*names, HEAD}}
    target = HeldTarget(draft.target)
    return HeldDraft(draft.arch, draft.path, draft.tokens, target, draft.own_head, draft._files, draft._names, held)


@dataclass(frozen=True)
class Reading:
    """One way to read a pair."""

    draft: HeldDraft
    answers: tuple[Answer, ...]

    def with_arch(self, **changed: Any) -> Reading:
        """Other switches of the draft."""
        return replace(self, draft=replace(self.draft, arch=replace(self.draft.arch, **changed)))

    def with_layer(self, **changed: Any) -> Reading:
        """Other settings of the draft's layer."""
        return self.with_arch(layer=replace(self.draft.arch.layer, **changed))

    def with_features(self, features: Sequence[np.ndarray]) -> Reading:
        """Other features, [n, F] for each answer."""
        pairs = zip(self.answers, features, strict=True)
        return replace(self, answers=tuple(replace(answer, features=each) for answer, each in pairs))


@dataclass(frozen=True)
class Scores:
    """At one level, of every position where the target's choice is known: ``guesses`` and ``labels`` [m], tokens of the target;
    ``nats`` [m]: log-probability of the label, NaN if the draft does not know it; ``answers`` [m]: to which answer a position belongs."""

    guesses: np.ndarray
    labels: np.ndarray
    nats: np.ndarray
    answers: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Where the guess is the label, bool [m]."""
        return np.asarray(self.guesses == self.labels)

    def only(self, kept: np.ndarray) -> Scores:
        """At the positions ``kept``, bool [m]."""
        return Scores(self.guesses[kept], self.labels[kept], self.nats[kept], self.answers[kept])


def replay(reading: Reading, level: int) -> Scores:
    """What the draft guesses at ``level`` (1 or 2), given the text so far."""
    parts = []
    for index, answer in enumerate(reading.answers):
        labels, scores = answer.labels(level), _log_probs(reading, answer, level)
        known = np.full(reading.draft.arch.layer.vocab, -1)
        known[reading.draft.tokens] = np.arange(len(reading.draft.tokens))
        ids = known[labels]
        nats = np.where(ids < 0, np.nan, np.take_along_axis(scores, ids[:, None], 1)[:, 0])
        parts.append((reading.draft.tokens[scores.argmax(-1)], labels, nats, np.full(len(labels), index)))
    return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a wrong reading may overflow: then it is no cure
def _log_probs(reading: Reading, answer: Answer, level: int) -> np.ndarray:
    draft, tokens = reading.draft, answer.tokens
    count = len(tokens) - 2  # rows whose next token, and the one after it, are known
    rows, tri = np.arange(count), np.tri(count, dtype=bool)
    hidden = reference_fuse(draft, answer.features[:count])
    following, scores = reference_pass(draft, tokens[1 : count + 1], hidden, rows, tri, _EXACT)
    if level == 2:
        drafted = rows[answer.first : -1]  # the last one's label is not known
        beside = np.zeros((count, len(drafted)), bool)
        mask = np.block([[tri, beside], [tri[drafted], np.eye(len(drafted), dtype=bool)]])
        joined = np.concatenate([tokens[1 : count + 1], tokens[drafted + 2]])
        positions = np.concatenate([rows, drafted + 1])
        _, scores = reference_pass(draft, joined, np.concatenate([hidden, following[drafted]]), positions, mask, _EXACT)
        scores = scores[count:]
    else:
        scores = scores[answer.first :]
    return scores


@dataclass(frozen=True)
class Gain:
    """How much better one reading is than another. ``before``, ``after``: shares of right guesses; ``low``, ``high``: the interval of their
    difference (three standard errors). ``nats``: what the log-probability of the right token gains, and ``least``: the low end of that."""

    before: float
    after: float
    low: float
    high: float
    nats: float
    least: float

    @property
    def clear(self) -> bool:
        """Whether it is neither chance nor too small to matter."""
        # Of a draft that is mostly wrong, anything that makes it less sure gains log-probability.
        surer = self.least > 0 and self.nats >= LEAST_NATS and self.after >= self.before >= WORKS
        return surer or (self.low > 0 and self.after - self.before >= LEAST)

    def __str__(self) -> str:
        shares = f"{self.before:.2f} of the positions as it is, at {self.after:.2f} so ({self.low:+.2f} to {self.high:+.2f})"
        return f"right at {shares}" + (
            f", {self.nats:+.2f} nats (at least {self.least:+.2f}) for the right token" if np.isfinite(self.nats) and self.nats else ""
        )


def gain(before: Scores, after: Scores) -> Gain:
    """Compares two readings at the same positions."""
    low, high = interval(after.right.astype(float) - before.right, after.answers)
    both = np.isfinite(before.nats) & np.isfinite(after.nats)
    nats = (after.nats - before.nats)[both]
    least = interval(nats, after.answers[both])[0] if len(nats) else 0.0
    return Gain(float(before.right.mean()), float(after.right.mean()), low, high, float(nats.mean()) if len(nats) else 0.0, least)


def interval(values: np.ndarray, answers: np.ndarray) -> tuple[float, float]:
    """Of the mean of ``values`` [m], with BLOCK neighbours of an answer as one observation."""
    places = np.concatenate([np.arange(count) for count in np.bincount(answers)]) // BLOCK
    _, block = np.unique(np.stack([answers, places]), axis=1, return_inverse=True)
    mean = float(values.mean())
    sums = np.bincount(block.ravel(), weights=values - mean)
    error = float(np.sqrt((sums**2).sum()) / len(values))
    return mean - 3 * error, mean + 3 * error
