"""Runs a benchmark: every contender answers every turn of every question, and they rotate in answering first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from policy import FixedPolicy

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


def warm_up(contenders: Sequence[Contender]) -> None:
    """One short answer with each tree on each Decoder. Fixed policies do it: a first pass is slow, and a contender's own policy must not
    learn from that."""
    for decoder, tree in dict.fromkeys((contender.decoder, tree) for contender in contenders for tree in contender.trees):
        decoder.generate(WARM_UP, SamplingParams(max_new_tokens=WARM_UP_TOKENS), policy=FixedPolicy(tree))


def measure(
    questions: Sequence[Question], contenders: Sequence[Contender], settings: BenchSettings, progress: Progress
) -> Iterator[tuple[TurnRecord, ...] | Skipped]:
    """All answers to one turn at a time, in the order of ``contenders``; or why a turn could not be asked.

    Contender k answers first in turns k, k + len(contenders), ... of the run. Every contender sees the baseline's answers in the chat.
    """
    decoder, asked = contenders[0].decoder, 0
    for done, question in enumerate(questions):
        progress(done, len(questions))
        chat: list[dict[str, str]] = []
        for turn, text in enumerate(question.turns):
            chat.append({"role": "user", "content": text})
            try:
                prompt = decoder.encode(prompt_of(decoder, chat))
            except PromptError as error:
                yield Skipped(question.set, question.number, turn, str(error))
                break
            seed = (settings.seed + asked) % 2**64
            params = SamplingParams(temperature=settings.temperature, seed=seed, max_new_tokens=settings.max_new_tokens)
            answers: dict[str, tuple[TurnRecord, str]] = {}
            for place in range(len(contenders)):
                contender = contenders[(place + asked) % len(contenders)]
                answers[contender.name] = _ask(contender, prompt, params, question, turn)
            asked += 1
            yield tuple(answers[contender.name][0] for contender in contenders)
            chat.append({"role": "assistant", "content": answers[BASELINE][1]})
    progress(len(questions), len(questions))


def prompt_of(decoder: Decoder, chat: list[dict[str, str]]) -> Prompt:
    """Plain text, one turn a line, for a model without a chat template."""
    return chat if decoder.manifest.tokens.chats else "\n".join(message["content"] for message in chat)


def _ask(contender: Contender, prompt: Sequence[int], params: SamplingParams, question: Question, turn: int) -> tuple[TurnRecord, str]:
    """One answer and its text. Only the wait for each delivery is timed, not the bookkeeping here."""
    text, first = "", 0.0
    tokens: list[int] = []
    waits: list[float] = []
    counts: list[int] = []
    accepted: list[int] = []
    nodes: list[int] = []
    trees: list[str] = []
    decoder = contender.decoder
    decoder.forget()  # every contender computes the whole prompt
    begun = asked = perf_counter()
    with decoder.stream(prompt, params, policy=contender.policy) as stream:
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
    return TurnRecord(question.set, question.number, turn, contender.name, tuple(tokens), stop, first, stats, rounds), text
