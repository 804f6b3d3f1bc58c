"""Asking: every turn of every question is put to all arms, which take turns in answering first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

from policy import FixedPolicy, TreeSpec

from ..decoder import Decoder, Prompt
from ..errors import PromptError
from ..sampling_params import SamplingParams
from .contenders import Contender
from .questions import Question
from .record import BASELINE, BenchSettings, Rounds, Skipped, TurnRecord

WARM_UP = "Say something, please."
WARM_UP_TOKENS = 12

Progress = Callable[[int, int], None]
"""(questions done, questions in all)"""


def warm_up(decoder: Decoder, arms: Sequence[Contender]) -> None:
    """One short answer with each tree, by fixed policies: the arms' own learn nothing from passes that are slow because they are first."""
    trees: list[TreeSpec] = list(dict.fromkeys(tree for arm in arms for tree in arm.trees))
    for tree in trees:
        decoder.generate(WARM_UP, SamplingParams(max_new_tokens=WARM_UP_TOKENS), policy=FixedPolicy(tree))


def measure(
    decoder: Decoder, questions: Sequence[Question], arms: Sequence[Contender], settings: BenchSettings, progress: Progress
) -> Iterator[tuple[TurnRecord, ...] | Skipped]:
    """The answers of all arms to one turn at a time, in the order of ``arms``; or why a turn could not be asked.

    Arm k is the first to answer turn k, k + len(arms), ... of the run. Later turns see the answer of BASELINE, whoever is asked.
    """
    asked = 0
    for done, question in enumerate(questions):
        progress(done, len(questions))
        chat: list[dict[str, str]] = []
        for turn, text in enumerate(question.turns):
            chat.append({"role": "user", "content": text})
            try:
                prompt = decoder.encode(_prompt(decoder, chat))
            except PromptError as error:
                yield Skipped(question.set, question.number, turn, str(error))
                break
            sampling = SamplingParams(temperature=settings.temperature, seed=(settings.seed + asked) % 2**64)
            answers: dict[str, tuple[TurnRecord, str]] = {}
            for place in range(len(arms)):
                arm = arms[(place + asked) % len(arms)]
                answers[arm.name] = _ask(decoder, prompt, arm, settings.max_new_tokens, sampling, question, turn)
            asked += 1
            yield tuple(answers[arm.name][0] for arm in arms)
            chat.append({"role": "assistant", "content": answers[BASELINE][1]})
    progress(len(questions), len(questions))


def _prompt(decoder: Decoder, chat: list[dict[str, str]]) -> Prompt:
    """A model without a chat template reads the turns one after the other as plain text."""
    return chat if decoder.manifest.tokens.chat_template else "\n".join(message["content"] for message in chat)


def _ask(
    decoder: Decoder, prompt: Sequence[int], arm: Contender, most: int, sampling: SamplingParams, question: Question, turn: int
) -> tuple[TurnRecord, str]:
    """One answer, and its text. Only the waiting for a delivery is timed, not what is written down about it."""
    text, first = "", 0.0
    tokens: list[int] = []
    waits: list[float] = []
    counts: list[int] = []
    accepted: list[int] = []
    nodes: list[int] = []
    trees: list[str] = []
    decoder.forget()  # every arm reads the prompt itself
    begun = asked = perf_counter()
    with decoder.stream(prompt, replace(sampling, max_new_tokens=most), policy=arm.policy) as stream:
        drafted = 0
        while (chunk := next(stream, None)) is not None:
            came = perf_counter()
            text += chunk.text
            tokens.extend(chunk.tokens)
            if chunk.spec is not None:
                total = stream.stats.drafted
                waits.append(round(came - asked, 7))
                counts.append(len(chunk.tokens))
                accepted.append(chunk.accepted)
                nodes.append(total - drafted + 1)
                trees.append(str(chunk.spec))
                drafted = total
            elif chunk.tokens:
                first = came - begun
            asked = perf_counter()
        stats, stop = stream.stats, stream.stop or "cancelled"
    rounds = Rounds(tuple(waits), tuple(counts), tuple(accepted), tuple(nodes), tuple(trees))
    return TurnRecord(question.set, question.number, turn, arm.name, tuple(tokens), stop, first, stats, rounds), text
