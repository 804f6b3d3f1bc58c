"""Runs the turns: every contender answers all questions under all arrivals, then all of them again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from policy import Policy

from ...decoder import Decoder
from ...sampling_params import SamplingParams
from .clients import Places, closed_loop, open_loop, poisson
from .prompts import LoadQuestion
from .record import Arrivals, LoadAnswer, LoadContender, LoadTurn, PlainAnswer

Progress = Callable[[str, int, int], None]
"""(stage, parts done, parts in all)"""


@dataclass(frozen=True)
class Serving:
    """A contender with what serves its requests. ``policy``: None is the Decoder's own."""

    record: LoadContender
    decoders: Sequence[Decoder]
    policy: Policy | str | None


@dataclass(frozen=True)
class Traffic:
    """What every contender is sent. ``params``: of each question, with a seed of its own."""

    questions: Sequence[LoadQuestion]
    params: Sequence[SamplingParams]
    arrivals: Sequence[Arrivals]
    seed: int


def plain_answers(decoder: Decoder, traffic: Traffic, progress: Progress) -> Iterator[PlainAnswer]:
    """``decoder`` answers all questions plainly, one after another, each with an empty cache."""
    for number, (question, params) in enumerate(zip(traffic.questions, traffic.params, strict=True)):
        progress("plain decoding", number, len(traffic.questions))
        decoder.forget()
        yield PlainAnswer(question.set, question.number, decoder.generate(question.tokens, params, policy="none").tokens)
    progress("plain decoding", len(traffic.questions), len(traffic.questions))


def measure(contenders: Sequence[Serving], traffic: Traffic, turns: int, progress: Progress) -> Iterator[LoadTurn]:
    """All turns. Contender k goes first in turns k, k + len(contenders), ... Poisson arrivals differ from turn to turn, not between
    contenders."""
    done, total = 0, turns * len(traffic.arrivals) * len(contenders)
    for number in range(turns):
        for arrivals in traffic.arrivals:
            for place in range(len(contenders)):
                progress("turns", done, total)
                yield _turn(contenders[(place + number) % len(contenders)], arrivals, traffic, number)
                done += 1
    progress("turns", total, total)


def _turn(serving: Serving, arrivals: Arrivals, traffic: Traffic, number: int) -> LoadTurn:
    for decoder in serving.decoders:
        decoder.forget()
    before = _passes(serving.decoders)
    places, stop, begun = Places(serving.decoders, serving.record.lanes), threading.Event(), perf_counter()

    def ask(index: int, arrived: float) -> LoadAnswer:
        with places.take() as decoder:
            return _ask(decoder, traffic.questions[index], traffic.params[index], serving.policy, (begun, arrived), stop)

    if arrivals.rate is None:
        answers = closed_loop(len(traffic.questions), arrivals.clients or 1, ask, stop)
    else:
        times = poisson(arrivals.rate, len(traffic.questions), (traffic.seed + number) % 2**64)
        answers = open_loop(times, ask, stop)
    passes, rows = (now - then for now, then in zip(_passes(serving.decoders), before, strict=True))
    return LoadTurn(serving.record.name, arrivals, number, passes, rows, tuple(answers))


def _ask(
    decoder: Decoder,
    question: LoadQuestion,
    params: SamplingParams,
    policy: Policy | str | None,
    times: tuple[float, float],
    stop: threading.Event,
) -> LoadAnswer:
    """One answer. ``times``: when the turn began, and when the request arrived. Ends early when ``stop`` is set."""
    begun, arrived = times
    tokens: list[int] = []
    waits: list[float] = []
    counts: list[int] = []
    last = arrived
    with decoder.stream(question.tokens, params, policy=policy) as stream:
        while not stop.is_set() and (chunk := next(stream, None)) is not None:
            if chunk.tokens:
                now = perf_counter()
                waits.append(round(now - last, 7))
                counts.append(len(chunk.tokens))
                tokens.extend(chunk.tokens)
                last = now
        stats, ended = stream.stats, stream.stop or "cancelled"
    first = waits[0] if waits else 0.0
    return LoadAnswer(
        question.set, question.number, round(arrived - begun, 7), first, tuple(waits[1:]), tuple(counts[1:]), tuple(tokens), ended,
        stats.prompt_tokens, stats.cached_prompt_tokens, stats.cycles,
    )  # fmt: skip


def _passes(decoders: Sequence[Decoder]) -> tuple[int, int]:
    """Verification passes of all ``decoders`` so far, and the rows in them."""
    totals = [decoder.totals for decoder in decoders]
    return sum(each.passes for each in totals), sum(each.rows for each in totals)
