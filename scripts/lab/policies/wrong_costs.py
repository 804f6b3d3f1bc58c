"""What wrong costs cost with one lane, and what is left of that when rounds in service correct them.

    python -m scripts.lab.policies.wrong_costs --engine-dir DIR QUESTIONS.jsonl...

Costs are measured first. The tuned cost model answers with them, and with costs in which rows beyond the first are X times as dear. It
takes each as they are ("believed"), and corrected by what rounds take, as in service. Lookup is off. Use a quiet machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from export.tuning.replay.grid import grid_for
from export.tuning.replay.latency import measure_latency
from policy import PLAIN, CorrectedLatency, CorrectedRounds, CostModel, FixedPolicy, LatencyModel, RoundCosts, TreeSpec, watch
from runtime import Decoder
from runtime.bench.contenders import Contender
from runtime.bench.measure import measure, warm_up
from runtime.bench.questions import read_questions
from runtime.bench.ratio import Spread, compare, mean_of
from runtime.bench.record import BASELINE, BenchSettings, Skipped, TurnRecord
from runtime.console import run_command
from runtime.manifest.tuning import Tuning
from scripts import options


def with_rows(latency: LatencyModel, factor: float) -> LatencyModel:
    """The same, but rows beyond the first are ``factor`` times as dear."""
    scaled = tuple(tuple(costs[0] + factor * (each - costs[0]) for each in costs) for costs in latency.verify_ms)
    return replace(latency, verify_ms=scaled)


def contenders(decoder: Decoder, tuning: Tuning, latency: LatencyModel, factors: tuple[float, ...]) -> Iterator[Contender]:
    """Plain decoding, and the cost model with each belief."""
    yield Contender(BASELINE, FixedPolicy(PLAIN), decoder)
    assert tuning.cost_model is not None
    for factor in (1.0, *factors):
        said = with_rows(latency, factor)
        beliefs: dict[str, RoundCosts] = {"believed": said, "corrected": CorrectedRounds(CorrectedLatency(said.alone()))}
        for belief, costs in beliefs.items():
            policy = watch(CostModel(tuning.cost_model, costs), TreeSpec(*tuning.static), costs)
            yield Contender(f"rows x {factor:g}, {belief}", policy, decoder)


def described(spread: Spread) -> str:
    """A ratio with its interval."""
    return f"{spread.value:.3f}" + ("" if spread.low is None else f" ({spread.low:.3f}-{spread.high:.3f})")


@click.command(context_settings={"show_default": True})
@options.engine_dir
@click.option("--questions", default=3, help="Of each set.")
@click.option("--new-tokens", default=96)
@click.option("--temperature", default=0.0)
@click.option("--rows", "factors", type=float, multiple=True, default=(0.4, 2.5))
@click.option("--threads", default=2)
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(
    engine_dir: Path, questions: int, new_tokens: int, temperature: float, factors: tuple[float, ...], threads: int, sets: tuple[Path, ...]
) -> None:
    """Print tokens/s over plain decoding, by set and on the mean of sets."""
    with Decoder(engine_dir, draft="eagle", threads=threads) as decoder:
        if decoder.manifest.tuning is None:
            raise click.ClickException("the engine directory has no tuning — make one: resps-tune")
        grid = grid_for(decoder.manifest)
        latency = measure_latency(decoder, grid.widths, grid.depths, grid.max_nodes)
        arms = list(contenders(decoder, decoder.manifest.tuning.for_temperature(temperature), latency, factors))
        warm_up(arms)
        settings, answers = BenchSettings((), questions, new_tokens, temperature, 0, threads), list[TurnRecord]()
        for turn in measure(read_questions(sets, questions), arms, settings, lambda *_: None):
            if not isinstance(turn, Skipped):
                answers += turn
    click.echo(f"| costs | mean | {' | '.join(file.stem for file in sets)} |\n| --- | --- |{' --- |' * len(sets)}")
    for arm in arms[1:]:
        found = [
            compare(*([each for each in answers if each.set == file.stem and each.contender == name] for name in (arm.name, BASELINE)))
            for file in sets
        ]
        usable = [each for each in found if each]
        cells = " | ".join(f"{each.ratio.sums.value:.2f}" if each else "-" for each in found)
        click.echo(f"| {arm.name} | {described(mean_of(usable)[1])} | {cells} |")


if __name__ == "__main__":
    sys.exit(run_command(main, "wrong_costs"))
