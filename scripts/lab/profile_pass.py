"""Where does the time of a target pass go? Milliseconds and nodes of every operator, by ONNX Runtime's profiler.

    python -m scripts.lab.profile_pass --engine-dir DIR [--rows 1] [--context 230] [--passes 20] [--shapes] [--json]

Passes over a chain behind random tokens, as the runtime runs them on a CPU: same graph, session options, buffers and cache. Figures are
medians over the passes. The profiler adds one to two microseconds per node, so small nodes look slower than they are.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from policy import PLAIN, default_latency
from runtime.backends.cpu.backend import CpuBackend
from runtime.backends.cpu.onnxruntime import open_session
from runtime.console import run_command
from runtime.decoding.tree import Tree
from runtime.drafters.registry import DRAFTERS
from runtime.manifest.load import find_engine_dir, load_manifest
from runtime.manifest.schema import Manifest
from runtime.models import load_models
from scripts import options

NODE_SUFFIX = "_kernel_time"
"""Suffix of the profiler's events for single nodes."""


@dataclass(frozen=True)
class Operator:
    """All nodes of one operator in one pass."""

    name: str
    milliseconds: float
    nodes: int


@dataclass(frozen=True)
class Profile:
    """``milliseconds``: a whole pass inside ONNX Runtime; ``operators``: the slowest first."""

    milliseconds: float
    operators: tuple[Operator, ...]


def profile_pass(directory: Path, manifest: Manifest, rows: int, context: int, passes: int, threads: int, shapes: bool) -> Profile:
    """Passes over a chain of ``rows``, the last of ``context`` tokens. ``shapes``: group operators also by the shapes of their first two
    inputs (weights are not listed) and of their output. Raises EngineDirError, and UsageError for a context that does not fit."""
    limits = manifest.limits
    if not rows <= limits.tree_nodes or not rows < context <= limits.context:
        problem = (
            f"the engine has {limits.context} tokens of context and passes of up to {limits.tree_nodes} rows, after at least one token"
        )
        raise click.UsageError(f"--rows {rows} and --context {context} do not fit: {problem}")
    graph = manifest.graph("target")
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(directory / (graph.fused or graph.file), threads, Path(folder) / "profile")
        backend = CpuBackend(directory, manifest, threads, {"target": session})
        try:
            target = load_models(backend, manifest, DRAFTERS["none"], (), default_latency(manifest.quantized), PLAIN).target
            tokens = np.random.default_rng(0).integers(0, manifest.shape.vocab, context).tolist()
            for _ in target.prefill(tokens[: context - rows]):
                pass
            for _ in range(passes + 1):  # the first is untimed
                target.verify(Tree.chain(tokens[context - rows :]))
        finally:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            backend.close()
    return medians(events, passes, shapes)


def medians(events: Iterable[dict[str, Any]], passes: int, shapes: bool) -> Profile:
    """Medians over the last ``passes`` passes in the profiler's events."""
    runs, kernels = [], []
    for event in events:
        if event.get("name") == "model_run":
            runs.append((event["ts"], event["ts"] + event["dur"]))
        elif event.get("cat") == "Node" and event["name"].endswith(NODE_SUFFIX):
            kernels.append(event)
    times: list[Counter[str]] = []
    counts: Counter[str] = Counter()
    for start, end in sorted(runs)[-passes:]:
        times.append(Counter())
        counts.clear()  # every pass has the same nodes
        for event in (kernel for kernel in kernels if start <= kernel["ts"] <= end):
            name = _name(event["args"], shapes)
            times[-1][name] += event["dur"]
            counts[name] += 1
    operators = [Operator(name, statistics.median(totals[name] for totals in times) / 1000, count) for name, count in counts.items()]
    whole = statistics.median(end - start for start, end in sorted(runs)[-passes:]) / 1000
    return Profile(whole, tuple(sorted(operators, key=lambda operator: -operator.milliseconds)))


def _name(arguments: dict[str, Any], shapes: bool) -> str:
    operator = str(arguments["op_name"])
    if not shapes:
        return operator
    inputs, outputs = (
        ["x".join(map(str, next(iter(shape.values())))) or "scalar" for shape in arguments.get(f"{side}_type_shape", [])[:count]]
        for side, count in (("input", 2), ("output", 1))
    )
    return " ".join([operator, *inputs, "to", *outputs])


@click.command()
@options.engine_dir
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True)
@click.option("--context", type=click.IntRange(2), default=230, show_default=True, help="Tokens, the rows included.")
@click.option("--passes", type=click.IntRange(1), default=20, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--shapes", is_flag=True, help="Group operators also by the shapes of their inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(engine_dir: Path, rows: int, context: int, passes: int, threads: int, shapes: bool, as_json: bool) -> None:
    """Print a table in Markdown."""
    directory = find_engine_dir(engine_dir)
    manifest = load_manifest(directory)
    profile = profile_pass(directory, manifest, rows, context, passes, threads, shapes)
    if as_json:
        click.echo(
            json.dumps({"engine": directory.name, "precision": manifest.precision, "rows": rows, "context": context, **asdict(profile)})
        )
        return
    kernels = sum(operator.milliseconds for operator in profile.operators)
    click.echo(
        f"{directory.name} ({manifest.precision}), {rows} of {context} tokens: {profile.milliseconds:.2f} ms, {kernels:.2f} in nodes\n"
    )
    click.echo("| operator | ms | of the pass | nodes |\n| --- | --- | --- | --- |")
    for operator in profile.operators:
        click.echo(
            f"| {operator.name} | {operator.milliseconds:.3f} | {operator.milliseconds / profile.milliseconds:.1%} | {operator.nodes} |"
        )


if __name__ == "__main__":
    sys.exit(run_command(main, "profile_pass"))
