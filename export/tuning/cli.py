"""resps-tune: an engine directory -> the same with the policy that is fastest on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from runtime import options
from runtime.console import progress, run_command
from runtime.options import FILE, OUTPUT, option
from runtime.policies.registry import POLICIES

if TYPE_CHECKING:
    from policy import LanesLatency, TreeSpec
    from runtime import Decoder
    from runtime.engine import LoadedEngine

    from .load.compare import Fitted, Results
    from .load.worlds import World
    from .outcome import TuningResult
    from .replay.grid import TreeGrid
    from .replay.traces import Trace

RECORDING, SAMPLED, LANES, LATENCY, TRAINING, FINISHING = 0.25, 0.1, 0.05, 0.1, 0.35, 0.05  # shares of the minutes; the rest confirms
MOST_LANES = 8  # of the report by load
TEMPERATURES = 2  # that are confirmed: 0 and 1
LEARNED = tuple(name for name, kind in POLICIES.items() if kind.learned and not kind.variant)
VARIANTS = tuple(name for name, kind in POLICIES.items() if kind.variant)  # as the papers compare them
CANDIDATES = {name: POLICIES[name] for name in ("cost-model", *LEARNED, *VARIANTS)}
TUNING = "Tuning"


@click.command(
    cls=options.Command,
    epilog="""\
resps-tune --engine-dir engines/smollm2-135m
resps-tune --prompts my-prompts.txt --minutes 60 --report tuning.html
resps-tune --policy resps --policy ltd --dry-run --json""",
)
@option(TUNING, "--prompts", type=FILE, show_default="a collection of all kinds",
        help="Your prompts: JSON lines with prompt or turns, or a prompt a line.")  # fmt: skip
@option(TUNING, "--minutes", metavar="N", type=click.FloatRange(min=0.1), default=20.0, help="About how long it may take.")
@option(TUNING, "--policy", "policies", multiple=True, metavar="NAME", type=click.Choice([*CANDIDATES, "all"]),
        show_default=", ".join(("cost-model", *LEARNED)),
        help=f"A candidate, or all; may be repeated. cost-model always is one. {options.summaries(CANDIDATES.values())}.")  # fmt: skip
@option(TUNING, "--simulate", "world", metavar="WORLD",
        help="Only say which policy would be fastest on a GPU, such as h100-8b, from published figures; installs nothing.")  # fmt: skip
@option(TUNING, "--seed", type=click.IntRange(min=0), default=0, help="Seed of the training.")
@options.engine_dir
@options.threads("usable cores; a tuning holds for this number only")
@option(OUTPUT, "--dry-run", is_flag=True, help="Install nothing.")
@option(OUTPUT, "--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html", help="Write a page with the results.")
@option(OUTPUT, "--json", "as_json", is_flag=True, help="Print the result as JSON.")
@options.general
def command(engine_dir: Path, **given: Any) -> None:
    """Find the fastest policy for an engine on this machine, and install it if it beats the best fixed tree.

    May be interrupted and started again: recorded answers are kept, and the engine changes only at the very end.
    """
    from runtime import Decoder
    from runtime.backends.cpu.processor import usable_cores
    from runtime.engine import choose_engine, load_engine
    from runtime.manifest.load import find_engine_dir

    from .install import expect_installable, install
    from .outcome import summary
    from .prompts import read_prompts
    from .replay.grid import grid_for
    from .report import expect_writable, write_report

    if given["report"]:
        expect_writable(given["report"])
    world = None if given["world"] is None else _world(given["world"])
    if world and (given["report"] or given["as_json"] or given["policies"]):
        raise click.UsageError("--simulate prints text and compares its own policies — leave --report, --json and --policy out")
    prompts = read_prompts(given["prompts"])
    named = tuple(dict.fromkeys(given["policies"]))
    learned = (*LEARNED, *VARIANTS) if "all" in named else tuple(name for name in named if name != "cost-model") if named else LEARNED
    directory, threads = find_engine_dir(engine_dir), given["threads"] or usable_cores()
    if not (given["dry_run"] or world):
        expect_installable(directory)
    choice = choose_engine(directory, draft=None, backend=None, device=None, threads=threads, verify=True, tuned=False)
    engine = load_engine(choice)
    if world is not None:
        with Decoder(engine, policy="fixed") as decoder, _recorder(engine, decoder) as recorder:
            click.echo("\n".join(_simulate(world, recorder, prompts, perf_counter() + 60 * given["minutes"])))
        return
    with Decoder(engine, policy="fixed") as decoder:
        result = _tune(engine, decoder, prompts, given["minutes"], learned, threads, given["seed"])
        manifest = decoder.manifest
    tuning = result.tuning if given["dry_run"] else install(directory, manifest, result).tuning
    assert tuning is not None
    if given["report"]:
        write_report(given["report"], manifest, result, _compared(result, engine.choice.default_tree, grid_for(manifest)))
    click.echo(json.dumps(dataclasses.asdict(tuning)) if given["as_json"] else "\n".join(summary(result)))


def _compared(result: TuningResult, default: TreeSpec, grid: TreeGrid) -> tuple[Results, Fitted, TreeSpec] | None:
    """What several lanes would gain on the test answers, if they were measured."""
    from policy import TreeSpec

    from .load.compare import Setting, compare, fit_load
    from .replay.simulation import fixed_trees

    lanes, answers = result.tuning.latency.lanes, result.answers
    if lanes is None:
        return None
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    setting = Setting(lanes, trees, default, TreeSpec(*grid.largest_trees[-1]))
    loads = tuple(count for count in lanes.lanes if count <= MOST_LANES)
    fitted = fit_load(answers.train_and_validation, setting, loads)
    found = compare(answers.test, setting, fitted, loads, lambda done, steps: progress("comparing by load", done, steps))
    return found, fitted, default


def _world(name: str) -> World:
    """The GPU world with this name. Raises UsageError for an unknown one."""
    from .load.worlds import load_world, world_names

    if name not in world_names():
        raise click.UsageError(f"there is no world {name} — choose from {', '.join(world_names())}")
    return load_world(name)


def _simulate(world: World, decoder: Decoder, prompts: list[str], deadline: float) -> list[str]:
    from .load.simulate import GRID, simulate
    from .tune import split

    _expect_tunable(decoder, prompts, held_out=0)
    parts = split(_recorded(decoder, prompts, GRID, deadline))
    return simulate(world, parts.train_and_validation, parts.test, lambda done, steps: progress("simulating", done, steps))


def _expect_tunable(decoder: Decoder, prompts: list[str], held_out: int) -> None:
    """Raises TuningError without a draft, or with too few ``prompts``. ``held_out``: how many there are besides."""
    from .errors import TuningError
    from .replay.record import MIN_PROMPTS

    if decoder.manifest.draft is None:
        raise TuningError("the engine has no EAGLE-3 draft, so there is nothing to tune — export with --draft-weights")
    if len(prompts) < MIN_PROMPTS:
        least = MIN_PROMPTS + (-(-MIN_PROMPTS // 2) if held_out else 0)
        raise TuningError(f"{len(prompts) + held_out} prompts are too few, tuning needs {least} — give more with --prompts")


def _tune(
    engine: LoadedEngine, decoder: Decoder, prompts: list[str], minutes: float, learned: tuple[str, ...], threads: int, seed: int
) -> TuningResult:
    from runtime import SamplingParams

    from .outcome import Findings, tuning_result
    from .replay.grid import grid_for
    from .replay.latency import measure_latency
    from .tune import confirm, confirming_seconds, fit, simulate, split, train

    held_out, others = prompts[::3], [prompt for index, prompt in enumerate(prompts) if index % 3]
    _expect_tunable(decoder, others, len(held_out))
    started, seconds, grid = perf_counter(), 60 * minutes, grid_for(decoder.manifest)
    end = started + seconds * (1 - FINISHING)
    with _recorder(engine, decoder) as recorder:
        parts = split(_recorded(recorder, others, grid, started + seconds * RECORDING))
        drawn = split(_recorded(recorder, others, grid, perf_counter() + seconds * SAMPLED, temperature=1.0))
        lanes = _lanes_latency(recorder, grid, perf_counter() + seconds * LANES)
    latency = measure_latency(
        decoder, grid.widths, grid.depths, grid.max_nodes, perf_counter() + seconds * LATENCY,
        lambda share: progress("measuring", round(100 * share), 100),
    )  # fmt: skip
    latency = replace(latency, lanes=lanes)
    candidates, rate = fit(parts, latency, grid)
    left = end - perf_counter() - TEMPERATURES * confirming_seconds(rate, grid, learned)
    candidates = train(candidates, parts, latency, grid, rate, learned, min(seconds * TRAINING, left), seed, progress)
    sampled_candidates = replace(fit(drawn, latency, grid)[0], learned=candidates.learned)
    found = []
    for number, (each, test) in enumerate(((candidates, parts.test), (sampled_candidates, drawn.test))):
        policies = each.policies(latency, grid.sizes)
        params = SamplingParams(max_new_tokens=grid.new_tokens, temperature=float(number))
        deadline = perf_counter() + (end - perf_counter()) / (TEMPERATURES - number)
        clock = confirm(decoder, held_out, policies, params, deadline, progress)
        found.append(Findings(each, clock, simulate(each, test, latency, grid)))
    return tuning_result(decoder.manifest, threads, latency, found[0], found[1], parts, grid)


@contextmanager
def _recorder(engine: LoadedEngine, decoder: Decoder) -> Iterator[Decoder]:
    """What records answers: a Decoder with lanes, which is several times as fast; ``decoder`` if the engine has one lane only, or runs on a
    GPU."""
    from runtime import Decoder
    from runtime.lanes.choose import choose_lanes

    choice = engine.choice
    lanes = choose_lanes(choice.manifest, None, 1, choice.threads, choice.drafter.name, choice.device, choice.backend)
    if lanes == 1 or choice.device != "cpu":
        yield decoder
        return
    with Decoder(engine.fork(), lanes=lanes) as several:
        yield several


def _recorded(decoder: Decoder, prompts: list[str], grid: TreeGrid, deadline: float, temperature: float = 0.0) -> list[dict[int, Trace]]:
    from runtime import SamplingParams

    from ..checkpoints.fetch import cache_directory
    from .replay.record import record

    cache = cache_directory() / "tuning" / decoder.manifest.engine_id
    return record(decoder, prompts, grid, cache, deadline, progress, SamplingParams(temperature=temperature))


def _lanes_latency(decoder: Decoder, grid: TreeGrid, deadline: float) -> LanesLatency | None:
    """The latencies with several lanes; None if ``decoder`` has one only."""
    from .replay.lanes_latency import measure_lanes

    if decoder.lanes == 1:
        return None
    return measure_lanes(decoder, grid.widths, grid.depths, deadline, lambda share: progress("measuring lanes", round(100 * share), 100))


def main() -> None:
    """Entry point of resps-tune."""
    sys.exit(run_command(command, "resps-tune", extra="tune"))
