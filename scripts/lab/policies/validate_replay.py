"""Is the replay's simulated time true? The same answers by the clock and in the replay, with costs that are measured in the same run.

    python -m scripts.lab.policies.validate_replay --engine-dir DIR QUESTIONS.jsonl...

Each arm is a policy as it serves, fitted to the prompts of `resps-tune`: plain decoding, the fixed tree, the cost model, which with
several lanes is the row budget, and there the table of trees. As many clients as lanes ask one question after another, from the first
request to the last token, as in the replay. With one lane prompts are left out in both. A rate counts tokens but the first of each answer.
Every turn has a Decoder of its own, so that policies know as little as in the replay. Lookup is off, the replay has none. Of a prompt the
replay reads as much as the clock did, which shares beginnings. Use a quiet machine.

The same graphs give the same tokens, so answers are recorded once with one lane and once with several. At a temperature each request has
the seed of its record, and a draw depends on seed and position only. The records have no tokens; compared are the lengths of answers. A
fixed tree without pauses has the rounds of its replay.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import monotonic, perf_counter

import click

from export.tuning.load.arrivals import at_once
from export.tuning.load.compare import arms
from export.tuning.load.simulation import simulate_load
from export.tuning.prompts import read_prompts
from export.tuning.replay.grid import TreeGrid, grid_for
from export.tuning.replay.record import as_chat
from export.tuning.replay.simulation import Answers, any_trace
from policy import LatencyModel
from runtime import Decoder, SamplingParams
from runtime.bench.load.measure import Serving, Traffic, measure
from runtime.bench.load.prompts import LoadQuestion
from runtime.bench.load.record import Arrivals, LoadContender, LoadTurn
from runtime.bench.load.run import expect_enough
from runtime.console import run_command
from runtime.engine import LoadedEngine
from scripts import options
from scripts.peers.quiet import Load

from .fitted import Closed, fit_closed, measured, open_untuned, recorded, tuned

FITTING, RECORDING = 0.35, 0.5  # of the minutes, until answers are recorded: to fit, to compare


@dataclass(frozen=True)
class Case:
    """A number of lanes, what is asked, and the records of the answers."""

    lanes: int
    questions: Sequence[LoadQuestion]
    answers: Answers

    @property
    def arms(self) -> tuple[str, ...]:
        """With one lane the table is a fixed tree."""
        return ("none", "fixed", "cost-model") if self.lanes == 1 else ("none", "fixed", "table", "cost-model")


@dataclass(frozen=True)
class Ran:
    """An arm on all answers. ``rate``: tokens per busy second. ``rows``: of a round, on average."""

    rate: float
    rounds: float
    rows: float


def cases(
    engine: LoadedEngine, prompts: Sequence[str], loads: Sequence[int], grid: TreeGrid, sampling: SamplingParams, deadline: float
) -> list[Case]:
    """One for each number of lanes in ``loads``, in ascending order."""
    found = []
    for own in ([each for each in loads if each == 1], sorted(each for each in loads if each > 1)):
        if own:
            with Decoder(engine.fork(), lanes=own[-1]) as decoder:
                kept = recorded(decoder, prompts, grid, sampling, deadline, "alone" if own == [1] else "lanes")
                asked = [LoadQuestion("", number, tuple(decoder.encode(as_chat(decoder, each)))) for number, (each, _) in enumerate(kept)]
            expect_enough(len(asked), [Arrivals(lanes, None) for lanes in own])
            found += [Case(lanes, asked, [traces for _, traces in kept]) for lanes in own]
    return found


def timed(
    engine: LoadedEngine, given: Sequence[Case], params: SamplingParams, turns: int, deadline: float
) -> tuple[list[dict[str, list[LoadTurn]]], float]:
    """For each case, by arm, all turns that end before ``deadline``, at least one; and the most cores that others used meanwhile."""
    found: list[dict[str, list[LoadTurn]]] = [{name: [] for name in case.arms} for case in given]
    longest = others = 0.0
    for number in range(turns):
        for case, into in zip(given, found, strict=True):
            traffic = Traffic(case.questions, [params] * len(case.questions), (Arrivals(case.lanes, None),), 0)
            first = number % len(case.arms)
            with Decoder(engine.fork(), lanes=case.lanes) as decoder:
                decoder.warmup()
                contenders = [
                    Serving(LoadContender(name, 1, case.lanes, engine.choice.threads, "eagle", name), [decoder], name)
                    for name in (*case.arms[first:], *case.arms[:first])
                ]
                load = Load()
                for turn in measure(contenders, traffic, 1, lambda *_: None):
                    into[turn.contender].append(turn)
                    longest, others, load = max(longest, monotonic() - load.started), max(others, load.others()), Load()
                    if perf_counter() + longest > deadline:
                        return found, others
    return found, others


def by_clock(turn: LoadTurn, lanes: int) -> Ran:
    """What a turn shows."""
    tokens = sum(len(answer.tokens) - 1 for answer in turn.answers)
    if lanes == 1:
        seconds = sum(sum(answer.waits) for answer in turn.answers)
    else:
        seconds = max(answer.end for answer in turn.answers) - min(answer.due for answer in turn.answers)
    return Ran(tokens / seconds, turn.passes, turn.rows / turn.passes)


def replayed(name: str, case: Case, closed: Closed, latency: LatencyModel, sizes: tuple[int, ...] | None) -> Ran:
    """The same arm in simulated time, its decisions charged."""
    if case.lanes == 1:
        alone = closed.candidates.replay(name, case.answers, latency, sizes)
        rows = sum(nodes * rounds for (nodes, _, _), rounds in alone.trees.items())
        return Ran(1000 * alone.rate, alone.cycles, rows / alone.cycles)
    arm, times = arms(closed.setting, closed.load, case.lanes)[name](), at_once(len(case.answers))
    shared = simulate_load(arm, case.answers, times, case.lanes, latency.for_lanes())
    return Ran(shared.rate, len(shared.rounds), mean(each.rows for each in shared.rounds))


def described(lanes: int, clock: Mapping[str, Sequence[Ran]], simulated: Mapping[str, Ran]) -> list[str]:
    """Rows of the table. Runs of ``clock`` are in the order of turns; a ratio over plain decoding is one of the same turn."""
    lines = []
    for name, runs in clock.items():
        if not runs:
            continue
        replay, rates = simulated[name], [run.rate for run in runs]
        ratios = [run.rate / plain.rate for run, plain in zip(runs, clock["none"], strict=False)]
        ratio = replay.rate / simulated["none"].rate
        error = f"{ratio / median(ratios) - 1:+.1%}" if ratios else "-"
        rounds, rows = median(run.rounds for run in runs), median(run.rows for run in runs)
        lines.append(
            f"| {lanes} | {name} | {_ranged(rates, 1)} | {replay.rate:.1f} | {replay.rate / median(rates) - 1:+.1%} | {_ranged(ratios, 3)} "
            f"| {ratio:.3f} | {error} | {rounds:.0f} | {replay.rounds:.0f} | {rows:.2f} | {replay.rows:.2f} |"
        )
    return lines


def _ranged(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})" if values else "-"


def as_read(case: Case, turns: Sequence[LoadTurn]) -> Case:
    """The case without the tokens of prompts that ``turns`` found in the cache."""
    answers = []
    for number, traces in enumerate(case.answers):
        cached = round(median(turn.answers[number].cached for turn in turns))
        answers.append({width: replace(trace, prompt_tokens=trace.prompt_tokens - cached) for width, trace in traces.items()})
    return replace(case, answers=answers)


def num_different(case: Case, turns: Sequence[LoadTurn]) -> int:
    """Answers that are not as long as their records."""
    lengths = [len(any_trace(traces)) + 1 for traces in case.answers]
    return sum(len(answer.tokens) != length for turn in turns for answer, length in zip(turn.answers, lengths, strict=True))


HEADER = """\
| lanes | arm | tokens/s by the clock | simulated | error | over none by the clock | simulated | error | rounds | simulated | rows a round | simulated |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""  # noqa: E501


@click.command()
@options.engine_dir
@click.option("--answers", default=32, show_default=True, help="Number of answers to fit to.")
@click.option("--questions", default=4, show_default=True, help="Number of questions of each set; only first turns are used.")
@click.option("--new-tokens", default=96, show_default=True, help="Longest answer.")
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--turns", default=2, show_default=True, help="How often every arm answers all questions.")
@click.option("--minutes", default=30.0, show_default=True, help="No turn begins that would end later.")
@click.option("--threads", default=2, show_default=True)
@click.option("--lanes", "loads", multiple=True, type=click.IntRange(min=1), default=(1, 2, 4, 8, 16), show_default=True)
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(
    engine_dir: Path,
    answers: int,
    questions: int,
    new_tokens: int,
    temperature: float,
    turns: int,
    minutes: float,
    threads: int,
    loads: tuple[int, ...],
    sets: tuple[Path, ...],
) -> None:
    """Print speed by the clock and in simulated time, medians and range over turns."""
    started, seconds = perf_counter(), 60 * minutes
    engine, sampling = open_untuned(engine_dir, threads), SamplingParams(temperature=temperature, seed=1 if temperature else None)
    grid = replace(grid_for(engine.choice.manifest), new_tokens=new_tokens)
    prompts = [prompt for file in sets for prompt in read_prompts(file)[:questions]]
    random.Random(0).shuffle(prompts)
    latency = measured(engine, max(loads), grid)
    with Decoder(engine.fork(), lanes=max(2, *loads)) as decoder:
        fitted_to = [traces for _, traces in recorded(decoder, read_prompts(None)[:answers], grid, sampling, started + FITTING * seconds)]
    closed = fit_closed(fitted_to, latency, grid, engine, max(loads))
    given = cases(engine, prompts, loads, grid, sampling, started + RECORDING * seconds)
    params = replace(sampling, max_new_tokens=new_tokens)
    found, others = timed(tuned(engine, closed, latency), given, params, turns, started + seconds)
    click.echo(
        f"fixed tree {closed.candidates.fixed_tree}, the row budget's bounds {closed.setting.largest}, fitted to {len(fitted_to)} answers; "
        f"other processes used at most {others:.2f} cores in a turn\n\n{HEADER}"
    )
    for case, by_arm in zip(given, found, strict=True):
        if run := [turn for turns in by_arm.values() for turn in turns]:
            clock = {name: [by_clock(turn, case.lanes) for turn in each] for name, each in by_arm.items()}
            read = as_read(case, run) if case.lanes > 1 else case
            click.echo(
                "\n".join(described(case.lanes, clock, {name: replayed(name, read, closed, latency, grid.sizes) for name in case.arms}))
            )
            counts = f"{num_different(case, run)} of {len(run) * len(case.answers)}"
            click.echo(f"{case.lanes} lanes: {counts} answers are not as long as their records", err=True)


if __name__ == "__main__":
    sys.exit(run_command(main, "validate_replay"))
