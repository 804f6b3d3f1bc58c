"""One run of one request at a time, from the command's options to the measurement."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from policy import TreeSpec

from ..backends.cpu.processor import usable_cores
from ..console import usage_errors
from ..decoder import Decoder
from ..errors import BenchError, RespsError
from ..manifest.load import find_engine_dir
from ..sampling_params import SamplingParams
from ..standard_streams import say
from .contenders import make_contenders
from .machine import engine_of, this_machine
from .measure import measure, warm_up
from .questions import read_questions
from .record import SCHEMA, BenchSettings, Measurement, Skipped, TurnRecord


def measured(
    given: Mapping[str, Any], files: Sequence[Path], names: Sequence[str], trees: Sequence[TreeSpec]
) -> tuple[Measurement, BaseException | None]:
    """The measurement, and the error that ended it early, if any. ``given``: the command's options."""
    questions = read_questions(files, given["questions"])
    threads = given["threads"] or usable_cores()
    settings = BenchSettings(
        tuple(map(str, files)), given["questions"], given["max_new_tokens"], given["temperature"], given["seed"], threads
    )
    with usage_errors():
        SamplingParams(temperature=settings.temperature, seed=settings.seed)
    answers: list[TurnRecord] = []
    skipped: list[Skipped] = []
    problem: BaseException | None = None
    with ExitStack() as stack:
        decoders = [stack.enter_context(decoder) for decoder in _opened(given, threads)]
        contenders = make_contenders(names, trees, decoders, settings.temperature)
        engine = engine_of(decoders)
        warm_up(contenders)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            for came in measure(questions, contenders, settings, _progress):
                if isinstance(came, Skipped):
                    skipped.append(came)
                else:
                    answers.extend(came)
        except (KeyboardInterrupt, RespsError) as stopped:
            problem = stopped
    if not answers:
        if problem:
            raise problem
        raise BenchError(f"none of the {len(questions)} questions can be asked: {skipped[0].reason}")
    records, machine = tuple(contender.record for contender in contenders), this_machine()
    stopped_early = problem is not None
    return Measurement(SCHEMA, date, stopped_early, settings, engine, machine, records, tuple(skipped), tuple(answers)), problem


def _opened(given: Mapping[str, Any], threads: int) -> Iterator[Decoder]:
    """One Decoder per draft, each with the whole engine in memory."""
    directory = find_engine_dir(given["engine_dir"])
    for draft in dict.fromkeys(given["drafts"] or [None]):
        with usage_errors():
            decoder = Decoder(directory, policy="none", draft=draft, backend=given["backend"], device=given["device"], threads=threads)
        yield decoder


def _progress(done: int, total: int) -> None:
    """A counter on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        say(f"\r{done} of {total} questions", nl=done == total)
