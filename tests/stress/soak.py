"""Runs two forks, or the lanes of one Decoder, under mixed requests for a long time. Compares every answer with the answer without load.

    python -m tests.stress.soak --engine-dir DIR --requests 2000 [--lanes 8]

The forks are loaded and warmed up as resps-serve does it. Requests are whole, sampled, ended by a stop string, cancelled, dropped, ended by
a deadline, plain, with other trees, with log-probabilities, follow-up turns, or invalid (too long, empty, no token). Prints JSON: requests
by kind and by end, wrong answers, resident memory (first, after the first fifth, last, most), its drift from the second to the third,
threads, and the caches' lengths at the end (of lanes: pages in use). The exit code is 1 if anything is
wrong or memory drifts by more than 1 %.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click

from policy import FixedPolicy, Policy, TreeSpec
from runtime import Decoder, PromptError, Result, SamplingParams
from runtime.bench.questions import read_questions
from runtime.serve.load import load_replicas
from scripts import options

EVERY = 10  # requests between two samples of the memory
TREES = [TreeSpec(5, 3, 2), TreeSpec(12, 4, 3), TreeSpec(3, 2, 1)]
KINDS = (
    "whole",
    "whole",
    "follow-up",
    "sampled",
    "stopped",
    "cancelled",
    "dropped",
    "late",
    "plain",
    "tree",
    "logprobs",
    "too long",
    "wrong",
)


@dataclass(frozen=True)
class KnownAnswer:
    """A request with its answer without load."""

    prompt: list[int]
    sampling: SamplingParams
    tokens: int
    answer: Result


@dataclass
class Log:
    """What happened; both threads write to it."""

    left: int
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> int | None:
        """The number of the next request, None after the last."""
        with self.lock:
            self.left -= 1
            if self.left >= 0 and self.left % EVERY == 0:
                self.memory.append(resident())
            return self.left if self.left >= 0 else None

    def note(self, kind: str, end: str, problem: str | None) -> None:
        with self.lock:
            self.kinds[kind] += 1
            self.ends[end] += 1
            if problem:
                self.wrong.append(problem)


def resident() -> int:
    """Resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def os_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def cases(decoder: Decoder, count: int, tokens: int) -> list[KnownAnswer]:
    """Questions and follow-up turns, greedy and sampled, answered without load in at most ``tokens`` tokens."""
    made = []
    for number, question in enumerate(read_questions([], count)):
        messages = [{"role": "user", "content": question.turns[0]}]
        chat = decoder.manifest.tokens.chats
        for sampling in (SamplingParams(), SamplingParams(temperature=0.8, top_p=0.95, seed=number)):
            first = answered(decoder, encoded(decoder, messages if chat else question.turns[0], tokens), sampling, tokens)
            chat_so_far = [
                *messages,
                {"role": "assistant", "content": first.answer.text},
                {"role": "user", "content": "Say it in other words."},
            ]
            again = encoded(decoder, chat_so_far, tokens) if chat else [*first.prompt, *first.answer.tokens, 5, 6]
            made += [first, answered(decoder, again, sampling, tokens)]
    return made


def encoded(decoder: Decoder, prompt: Any, tokens: int) -> list[int]:
    """Token ids, cut so that two answers fit into the context."""
    return decoder.tokenizer.encode(prompt)[: decoder.manifest.limits.context - 2 * tokens - 8]


def answered(decoder: Decoder, prompt: list[int], sampling: SamplingParams, tokens: int) -> KnownAnswer:
    decoder.forget()
    return KnownAnswer(prompt, sampling, tokens, decoder.generate(prompt, replace(sampling, max_new_tokens=tokens, logprobs=2)))


def ask(decoder: Decoder, kind: str, case: KnownAnswer, draw: random.Random) -> tuple[str, str | None]:
    """One request. Returns how it ended, and what was wrong, if anything."""
    params = replace(case.sampling, max_new_tokens=case.tokens)
    policy: Policy | str | None = None
    whole = case.answer
    if kind in ("too long", "wrong"):
        prompt: Any = (
            [5] * (decoder.manifest.limits.context + 1) if kind == "too long" else draw.choice(["", [-1], ["x"], [10**9], "\udcff"])
        )
        try:
            decoder.stream(prompt)
        except PromptError:
            return "refused", None
        return "refused", f"{kind}: was not refused"
    if kind == "stopped" and len(whole.text) > 20:
        place = draw.randrange(10, len(whole.text) - 4)
        params = replace(params, stop=[whole.text[place : place + 4]])
    if kind == "late":
        params = replace(params, deadline=draw.choice([0.0, 0.02, 0.1, 0.3]))
    if kind == "plain":
        policy = "none"
    if kind == "tree":
        policy = FixedPolicy(draw.choice(TREES))
    if kind == "logprobs":
        params = replace(params, logprobs=2)
    stream = decoder.stream(case.prompt, params, policy=policy)
    if kind in ("cancelled", "dropped"):
        got = [token for _ in range(draw.randrange(6)) for token in getattr(next(stream, None), "tokens", ())]
        if kind == "dropped":
            del stream
            return "dropped", None if whole.tokens[: len(got)] == tuple(got) else "dropped: other tokens"
        stream.cancel()
        got += [token for chunk in stream for token in chunk.tokens]
        return str(stream.stop), None if whole.tokens[: len(got)] == tuple(got) else "cancelled: other tokens"
    return check(kind, stream.result(), whole, params)


def check(kind: str, result: Result, whole: Result, params: SamplingParams) -> tuple[str, str | None]:
    """Compare with the answer without load, as far as a request of this kind gets."""
    problem = None
    if result.tokens != whole.tokens[: len(result.tokens)]:
        problem = f"{kind}: other tokens"
    elif kind == "stopped" and params.stop:
        if result.stop != "stop_string" or result.text != whole.text[: whole.text.index(params.stop[0])]:
            problem = f"{kind}: cut at another place"
    elif kind != "late" and (result.tokens, result.text, result.stop) != (whole.tokens, whole.text, whole.stop):
        problem = f"{kind}: another answer"
    elif kind == "late" and result.stop not in ("deadline", whole.stop):
        problem = f"{kind}: ended by {result.stop}"
    if result.logprobs is not None and whole.logprobs is not None and not problem:
        far = max((abs(a.logprob - b.logprob) for a, b in zip(result.logprobs, whole.logprobs, strict=False)), default=0.0)
        problem = f"{kind}: log-probabilities differ by {far}" if far > 1e-2 else None
    return result.stop, problem


def pages_in_use(decoder: Decoder) -> int:
    """Pages of the target's cache that are not free, without the prefix cache."""
    assert decoder._lanes is not None
    decoder.forget()
    pool = decoder._lanes.driver.forest.target.cache.pool
    return pool.count - pool.free


def work(decoder: Decoder, known: list[KnownAnswer], log: Log, seed: int) -> None:
    draw = random.Random(seed)
    while (number := log.next()) is not None:
        kind = KINDS[number % len(KINDS)]
        turn = 1 if kind == "follow-up" else 0
        case = known[2 * draw.randrange(len(known) // 2) + turn]
        if kind == "sampled":
            case = next(each for each in draw.sample(known, len(known)) if each.sampling.temperature)
        try:
            log.note(kind, *ask(decoder, kind, case, draw))
        except Exception as error:  # any exception is a finding
            log.note(kind, "error", f"{kind}: {type(error).__name__}: {error}")


def soak(engine_dir: Path, requests: int, questions: int, tokens: int = 64, lanes: int = 1) -> dict[str, Any]:
    before = threading.active_count()
    replicas = load_replicas(engine_dir, 2 if lanes == 1 else 1, lanes=lanes)
    decoder = replicas[0]
    with ExitStack() as cleanup:
        for each in replicas:
            cleanup.enter_context(each)
        known = cases(decoder, questions, tokens)
        loaded_threads, log, started = os_threads(), Log(requests), perf_counter()
        workers = [threading.Thread(target=work, args=(each, known, log, seed)) for seed, each in enumerate(replicas * lanes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        gc.collect()
        seconds, threads = perf_counter() - started, os_threads()
        lengths = []
        for each in replicas:
            each.forget()
            each.generate([5, 6, 7], SamplingParams(max_new_tokens=1))
            if lanes == 1:
                lengths.append(each.models.target.length)
            else:
                lengths.append(pages_in_use(each))
        totals = [each.totals.as_dict() for each in replicas]
    settled = log.memory[len(log.memory) // 5 :]
    part = max(1, len(settled) // 5)
    first, last = median(settled[:part]), median(settled[-part:])
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "kinds": dict(log.kinds),
        "ends": dict(log.ends),
        "wrong": log.wrong[:20],
        "wrong_count": len(log.wrong),
        "resident_mib": [round(each / 2**20, 1) for each in (log.memory[0], first, last, max(log.memory))],
        "drift": round(last / first - 1, 5),
        "threads": {
            "after loading": loaded_threads,
            "after the requests": threads,
            "python, before": before,
            "python, after closing": threading.active_count(),
        },
        "cache_length_at_the_end": lengths,
        "totals": totals,
    }


@click.command()
@options.engine_dir
@click.option("--requests", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--questions", type=click.IntRange(1), default=6, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Limit of an answer.")
@click.option("--lanes", type=click.IntRange(1), default=1, show_default=True, help="Of one Decoder; 1: two forks.")
def main(engine_dir: Path, requests: int, questions: int, tokens: int, lanes: int) -> None:
    """Soak two forks, or the lanes of one Decoder."""
    report = soak(engine_dir, requests, questions, tokens, lanes)
    click.echo(json.dumps(report))
    threads = report["threads"]
    fine = not report["wrong"] and report["drift"] <= 0.01 and report["cache_length_at_the_end"] == ([3, 3] if lanes == 1 else [0])
    fine = fine and threads["after the requests"] <= threads["after loading"]
    sys.exit(0 if fine and threads["python, after closing"] == threads["python, before"] else 1)


if __name__ == "__main__":
    main()
