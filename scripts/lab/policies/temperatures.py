"""Which temperature's policies suit a temperature of 0.7? Fitted at each temperature, tested at each, in simulated time, with intervals.

    python -m scripts.lab.policies.temperatures --engine-dir DIR QUESTIONS.jsonl...

With one lane: the fixed tree with its guard and the cost model with its watchdog. With several: the table of trees, and the row budget, of
which only the bounds of its trees were fitted. Decisions are charged. Fitted to prompts of their own, never to the questions. The first
figure of a cell is of all questions; the interval is that of resampled questions, the same ones for every policy and for plain decoding.
Costs are measured first, so use a quiet machine. Recorded answers are kept in the cache directory.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from export.tuning.load.arrivals import at_once
from export.tuning.load.compare import arms
from export.tuning.load.simulation import simulate_load
from export.tuning.prompts import read_prompts
from export.tuning.replay.grid import grid_for
from export.tuning.replay.simulation import Answers, any_trace
from policy import LatencyModel
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from scripts import options

from .fitted import Closed, fit_closed, measured, open_untuned, recorded

RECORDING = 0.5  # of the minutes, until answers are recorded; then policies are fitted
Fits = Mapping[float, Closed]
"""By temperature."""
Rates = dict[tuple[str, float], float]
"""Tokens per second over plain decoding, by arm and the temperature that it was fitted at."""


def one_lane(answers: Answers, fits: Fits, latency: LatencyModel, sizes: tuple[int, ...] | None) -> Callable[[Sequence[int]], Rates]:
    """What gives the rates on chosen answers: each was replayed once."""
    tokens = np.array([len(any_trace(traces)) for traces in answers])

    def milliseconds(name: str, fit: Closed) -> np.ndarray:
        return np.asarray(tokens / np.array(fit.candidates.replay(name, answers, latency, sizes).answer_rates))

    plain = milliseconds("none", next(iter(fits.values())))
    taken = {(arm, at): milliseconds(arm, fit) for arm in ("fixed", "cost-model") for at, fit in fits.items()}
    return lambda chosen: {key: float(plain[chosen].sum() / each[chosen].sum()) for key, each in taken.items()}


def several_lanes(answers: Answers, fits: Fits, latency: LatencyModel, lanes: int) -> Callable[[Sequence[int]], Rates]:
    """The same for lanes that are always taken, where every choice of answers has its own simulation."""

    def rates(chosen: Sequence[int]) -> Rates:
        given = [answers[index] for index in chosen]

        def rate(arm: str, fit: Closed) -> float:
            made = arms(fit.setting, fit.load, lanes)[arm]()
            return simulate_load(made, given, at_once(len(given)), lanes, latency.for_lanes()).rate

        plain = rate("none", next(iter(fits.values())))
        return {(arm, at): rate(arm, fit) / plain for arm in ("table", "cost-model") for at, fit in fits.items()}

    return rates


def resampled(rates: Callable[[Sequence[int]], Rates], count: int, resamples: int, deadline: float) -> list[Rates]:
    """The rates on all answers, then on resampled ones, as many as there is time for before ``deadline``."""
    found, generator = [rates(range(count))], np.random.default_rng(0)
    while len(found) <= resamples and perf_counter() < deadline:
        found.append(rates(generator.integers(0, count, count).tolist()))
    return found


def described(samples: Mapping[float, Sequence[Rates]]) -> list[str]:
    """A table for each arm: a line for each temperature that was tested. ``samples``: of `resampled`, by that temperature."""
    lines = []
    for arm in dict.fromkeys(arm for found in samples.values() for arm, _ in found[0]):
        lines += [f"\n| {arm}, tested at | {' | '.join(f'fitted at {at:g}' for at in samples)} | lowest over highest |"]
        lines += ["| --- |" + " --- |" * (len(samples) + 1)]
        first, last = min(samples), max(samples)
        for tested, found in samples.items():
            cells = [_with_interval([rates[arm, at] for rates in found]) for at in samples]
            cells.append(_with_interval([rates[arm, first] / rates[arm, last] for rates in found]))
            lines.append(f"| {tested:g} | {' | '.join(cells)} |")
    return lines


def _with_interval(values: Sequence[float]) -> str:
    whole, *others = values
    return f"{whole:.3f} ({' to '.join(f'{bound:.3f}' for bound in np.percentile(others, [2.5, 97.5]))})" if others else f"{whole:.3f}"


@click.command()
@options.engine_dir
@click.option("--training", type=click.Path(path_type=Path, exists=True), help="Prompts to fit to [default: the collection of resps-tune].")
@click.option("--answers", default=32, show_default=True, help="Number of answers to fit to.")
@click.option("--questions", default=6, show_default=True, help="Number of questions of each set; only first turns are used.")
@click.option("--temperature", "temperatures", multiple=True, type=float, default=(0.0, 0.7, 1.0), show_default=True)
@click.option("--resamples", default=200, show_default=True)
@click.option("--minutes", default=20.0, show_default=True, help="What is done then is printed.")
@click.option("--threads", default=2, show_default=True)
@click.option("--lanes", default=8, show_default=True, type=click.IntRange(min=2), help="Beside one lane.")
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(
    engine_dir: Path,
    training: Path | None,
    answers: int,
    questions: int,
    temperatures: tuple[float, ...],
    resamples: int,
    minutes: float,
    threads: int,
    lanes: int,
    sets: tuple[Path, ...],
) -> None:
    """Print tokens per second over plain decoding with one lane and with several."""
    started, seconds = perf_counter(), 60 * minutes
    engine = open_untuned(engine_dir, threads)
    grid = grid_for(engine.choice.manifest)
    latency = measured(engine, lanes, grid)
    prompts = [prompt for file in sets for prompt in read_prompts(file)[:questions]]
    random.Random(0).shuffle(prompts)
    fitted_to: dict[float, Answers] = {}
    tests: dict[float, Answers] = {}
    with Decoder(engine.fork(), lanes=lanes) as decoder:
        for number, at in enumerate(temperatures, 1):
            sampling, end = (
                SamplingParams(temperature=at, seed=1 if at else None),
                started + RECORDING * seconds * number / len(temperatures),
            )
            for asked, into, until in ((prompts, tests, (perf_counter() + end) / 2), (read_prompts(training)[:answers], fitted_to, end)):
                into[at] = [traces for _, traces in recorded(decoder, asked, grid, sampling, until)]
    fits = {at: fit_closed(each, latency, grid, engine, lanes) for at, each in fitted_to.items()}
    for at, fit in fits.items():
        counts = f"{len(fitted_to[at])} answers, tested on {len(tests[at])}"
        click.echo(f"temperature {at:g}: tree {fit.candidates.fixed_tree}, {fit.candidates.calibration}, fitted to {counts}")
    alone, several = {}, {}
    for number, (at, found) in enumerate(tests.items()):
        end = perf_counter() + (started + seconds - perf_counter()) / (len(tests) - number)
        alone[at] = resampled(one_lane(found, fits, latency, grid.sizes), len(found), resamples, end)
        several[at] = resampled(several_lanes(found, fits, latency, lanes), len(found), resamples, end)
    for count, samples in ((1, alone), (lanes, several)):
        click.echo(f"\nlanes: {count}; resamples: {min(map(len, samples.values())) - 1}")
        click.echo("\n".join(described(samples)))


if __name__ == "__main__":
    sys.exit(run_command(main, "temperatures"))
