"""From the evidence to findings: the reading of the checkpoint that explains it best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints.draft_checkpoint import DraftCheckpoint
from .alternatives import Alternative, draft_alternatives, layer_alternatives
from .evidence import DEPTH, Answer
from .replay import LEAST, WORKS, Gain, Reading, Scores, gain, held_draft, interval, replay
from .streams import Streams

FIRST = 2  # answers that sort out readings which are far worse
WELL = 0.7  # from here on nothing is gained by running the target once more
KEPT = 0.6  # of the first level's share at the second; healthy drafts keep 0.85 and more
KNOWN = 0.8  # share of the answers' tokens that a draft's vocabulary should hold; usual are 0.97 and more


@dataclass(frozen=True)
class Finding:
    """``fault``: what is wrong. ``evidence``: in numbers. ``cure``: what to do."""

    fault: str
    evidence: str
    cure: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.evidence} — {self.cure}"


@dataclass(frozen=True)
class Level:
    """How often the served draft's guess at a level was right, where those above it were: the share, its interval, and of how many
    positions."""

    share: float
    low: float
    high: float
    positions: int


def levels(answers: Sequence[Answer]) -> list[Level]:
    """The levels of a chain of DEPTH, as the engine drafts it at every position of the answers; none without answers."""
    if not answers:
        return []
    found = []
    for level in range(1, DEPTH + 1):
        served, _ = _served(answers, level)
        if len(served.labels):
            low, high = interval(served.right.astype(float), served.answers)
            found.append(Level(float(served.right.mean()), max(low, 0.0), min(high, 1.0), len(served.labels)))
    return found


Compute = Callable[[Collection[int]], Streams]
"""Computes the target's streams over the answers, at these layers."""


def diagnose(draft: DraftCheckpoint, answers: Sequence[Answer], compute: Compute) -> list[Finding]:
    """What is wrong, the gravest first."""
    search = _Search(Reading(held_draft(draft), tuple(answers)), compute)
    for level in (1, 2):  # a fault that shows at the first guess hides those that show at the second
        if found := [*search.engine(level), *search.cures(level)]:
            return found
    return list(search.without_cure())


class _Search:
    """``scores``: of the reading as it is, by level."""

    def __init__(self, reading: Reading, compute: Compute) -> None:
        self.reading, self.compute = reading, compute
        self.scores = dict[int, Scores]()

    def engine(self, level: int) -> Iterator[Finding]:
        """Whether the engine's draft is worse than its checkpoint, and as which other reading it computes."""
        self.scores[level] = replay(self.reading, level)
        served, reached = _served(self.reading.answers, level)
        if not reached.any():
            return
        better = gain(served, self.scores[level].only(reached))
        if not better.clear:
            return

        def like_served(scores: Scores) -> Scores:
            return replace(scores.only(reached), labels=served.guesses)

        alike = like_served(self.scores[level])
        as_other = self._best(level, lambda each: gain(alike, like_served(replay(each.read(self.reading), level))))
        fault = "the engine does not draft as the checkpoint says" + (f", but with {as_other[0].name}" if as_other else "")
        yield _finding(fault, level, better, "export again with --force; if it stays, with --draft-precision fp32")

    def cures(self, level: int) -> Iterator[Finding]:
        """The reading that is clearly better, the best one."""
        if best := self._best(level, self._gain):
            yield _finding(best[0].fault, level, best[1], best[0].cure)
        elif level == 1 and self.scores[1].right.mean() < WELL:
            yield from self._with_streams()

    def _gain(self, alternative: Alternative) -> Gain:
        level, reading = alternative.level, alternative.read(self.reading)
        few = replace(reading, answers=reading.answers[:FIRST])
        before = self.scores[level]
        first = gain(before.only(before.answers < FIRST), replay(few, level))
        return first if first.high < 0 else gain(before, replay(reading, level))

    def _best(self, level: int, worth: Callable[[Alternative], Gain]) -> tuple[Alternative, Gain] | None:
        tried = [(each, worth(each)) for each in draft_alternatives(self.reading) if each.level == level]
        clear = [(each, better) for each, better in tried if better.clear]
        near = max((better.after for _, better in clear), default=0.0) - LEAST
        return max((one for one in clear if one[1].after >= near), key=lambda one: one[1].nats, default=None)

    def _with_streams(self) -> Iterator[Finding]:
        """What needs the target's other layers, or the target without rounding."""
        captured = self.reading.draft.arch.captured
        others = layer_alternatives(captured, self.reading.draft.target.arch)
        streams = self.compute({layer for layers in (captured, *others) for layer in layers})
        exact = self.reading.with_features(streams.features(captured))
        before = replay(exact, 1)
        tried = [(layers, gain(before, replay(exact.with_features(streams.features(layers)), 1))) for layers in others]
        clear = [(layers, better) for layers, better in tried if better.clear]
        if clear:
            layers, better = max(clear, key=lambda one: one[1].after)
            where = f"list the layers as {list(layers)} (entered) or {[each - 1 for each in layers]} (left)"
            yield _finding(
                f"the draft should read layers {_listed(layers)} of the target, and reads {_listed(captured)}",
                1,
                better,
                f"correct eagle_aux_hidden_state_layer_ids in the draft's config.json, as its format counts: {where}, and export again",
            )
        else:
            yield from self._rounding(exact, streams)

    def _rounding(self, exact: Reading, streams: Streams) -> Iterator[Finding]:
        pairs = zip(exact.answers, streams.choices, strict=True)
        unrounded = replace(exact, answers=tuple(replace(answer, choices=choices) for answer, choices in pairs))
        better = gain(self.scores[1], replay(unrounded, 1))
        if better.clear:
            yield _finding(
                "the draft was trained for the unquantized target",
                1,
                better,
                "export with a higher --precision, or train the draft on answers of the quantized target (resps-train)",
            )

    def without_cure(self) -> Iterator[Finding]:
        """What no other reading explains."""
        first, second = (self.scores[level].right.mean() for level in (1, 2))
        known = np.isin(self.scores[1].labels, self.reading.draft.tokens).mean()
        share = f"guess 1 is right at {first:.2f} of {len(self.scores[1].labels)} positions"
        if known < KNOWN:
            yield Finding(
                "the draft's vocabulary lacks what the target writes here",
                f"it holds {known:.2f} of the answers' tokens, {share}",
                "use a draft that was trained on texts of this kind, or ask with --prompts what the target is for",
            )
        elif first < WORKS:
            yield Finding(
                "the draft was trained for another target, or not enough",
                f"{share}, drafts of any use reach {WORKS}, and no other reading of the checkpoint is better",
                "use the draft that was made for exactly these weights, or train one (resps-train)",
            )
        elif second < KEPT * first:
            yield Finding(
                "the draft gets worse with depth",
                f"{share}, guess 2 at {second:.2f} though the text before it is given",
                "use a draft that was trained on its own features (EAGLE-3's training-time test), or trees of depth 1",
            )


def _served(answers: Sequence[Answer], level: int) -> tuple[Scores, np.ndarray]:
    """What the engine guessed where its guesses before were right, and where that was, bool [m]."""
    found, reached = [], []
    for index, answer in enumerate(answers):
        labels = answer.labels(level)
        guesses = answer.guesses[: len(labels)]
        right = np.ones(len(labels), bool)
        for above in range(1, level):
            right &= guesses[:, above - 1] == answer.labels(above)[: len(labels)]
        reached.append(right)
        unknown, belongs = np.full(len(labels), np.nan), np.full(len(labels), index)
        found.append(Scores(guesses[:, level - 1], labels, unknown, belongs).only(right))
    joined = (np.concatenate([getattr(each, name) for each in found]) for name in ("guesses", "labels", "nats", "answers"))
    return Scores(*joined), np.concatenate(reached)


def _finding(fault: str, level: int, better: Gain, cure: str) -> Finding:
    return Finding(fault, f"guess {level} is {better}", cure)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
