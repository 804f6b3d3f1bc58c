"""One run with several clients, from the command's options to the measurement."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from policy import TreeSpec

from ...backends.cpu.processor import usable_cores
from ...console import progress, usage_errors
from ...errors import BenchError, RespsError
from ...manifest.load import find_engine_dir
from ...sampling_params import SamplingParams
from ..machine import engine_of, this_machine
from .measure import Traffic, measure, plain_answers
from .prompts import choose
from .record import KIND, SCHEMA, Arrivals, LoadMeasurement, LoadSettings, LoadTurn
from .serving import open_contenders, open_decoder


def measured(
    given: Mapping[str, Any], files: Sequence[Path], names: Sequence[str], trees: Sequence[TreeSpec]
) -> tuple[LoadMeasurement, BaseException | None]:
    """The measurement, and the error that ended it early, if any. ``given``: the command's options. Raises RespsError if no turn ended."""
    limits = (given["questions"], given["max_prompt_tokens"])
    settings = LoadSettings(tuple(map(str, files)), *limits, given["max_new_tokens"], given["temperature"], given["seed"], given["turns"])
    arrivals = [Arrivals(clients, None) for clients in given["clients"] or ()] + [Arrivals(None, rate) for rate in given["rate"] or ()]
    with usage_errors():
        _params(settings, 0)
    turns: list[LoadTurn] = []
    problem: BaseException | None = None
    with ExitStack() as stack:
        directory = find_engine_dir(given["engine_dir"])
        contenders = open_contenders(directory, given, names, trees, stack)
        plain = next((each.decoders[0] for each in contenders if each.record.lanes == 1), None)
        if plain is None:  # plain decoding is that of one lane
            plain = stack.enter_context(open_decoder(directory, given, "none", 1, given["threads"] or usable_cores()))
        questions, skipped, dropped = choose(files, *limits, plain)
        expect_enough(len(questions), arrivals)
        params = [_params(settings, number) for number in range(len(questions))]
        traffic = Traffic(questions, params, arrivals, settings.seed)
        expected = tuple(plain_answers(plain, traffic, progress))
        engine = engine_of(list({each.record.draft: each.decoders[0] for each in contenders}.values()))
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            for turn in measure(contenders, traffic, settings.turns, progress):
                turns.append(turn)
        except (KeyboardInterrupt, RespsError) as stopped:
            if not turns:
                raise
            problem = stopped
    records = tuple(each.record for each in contenders)
    return LoadMeasurement(
        KIND, SCHEMA, date, problem is not None, settings, engine, this_machine(), records, tuple(arrivals), tuple(skipped), dropped,
        expected, tuple(turns),
    ), problem  # fmt: skip


def expect_enough(questions: int, arrivals: Sequence[Arrivals]) -> None:
    """Raises BenchError if some client would have nothing to ask."""
    most = max((each.clients or 0 for each in arrivals), default=0)
    if most > questions:
        raise BenchError(f"{most} clients need at least as many questions, there are {questions} — raise --questions or give more files")


def _params(settings: LoadSettings, number: int) -> SamplingParams:
    """Of question ``number``; every question has a seed of its own."""
    seed = (settings.seed + number) % 2**64
    return SamplingParams(temperature=settings.temperature, seed=seed, max_new_tokens=settings.max_new_tokens)
