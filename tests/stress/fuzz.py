"""Fuzzes everything that reads untrusted input: files, prompts, sampling parameters, tree shapes.

    python -m tests.stress.fuzz --engine-dir DIR --cases 100000

Every case must end with a result or with RespsError, ValueError or TypeError, the first of one line. Any other exception, a wrong result
and a case that takes a minute end the run with a traceback; hypothesis shrinks the case. Prints JSON: how the cases of each target ended.
"""

from __future__ import annotations

import faulthandler
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from export.checkpoints.gguf import GgufCheckpoint
from export.checkpoints.weight_files import open_files
from runtime import Decoder, RespsError
from scripts import options
from tests.stress.fuzz_files import a_gguf, a_safetensors, decoders, files, manifests
from tests.stress.fuzz_requests import check_request, check_stops, check_text, check_tree, expect, parameters, prompts

EXPECTED = (RespsError, ValueError, TypeError)
HANGS = 60  # seconds


@dataclass(frozen=True)
class FuzzTarget:
    """``share`` of all cases; ``check`` may raise EXPECTED and nothing else."""

    name: str
    share: float
    cases: st.SearchStrategy[Any]
    check: Callable[[Any], object]


@contextmanager
def targets(engine_dir: Path) -> Iterator[list[FuzzTarget]]:
    """All targets. ``engine_dir``: a small engine directory, which is copied."""
    with tempfile.TemporaryDirectory() as name, Decoder(engine_dir, threads=1) as decoder:
        work = Path(name)
        for part in ("manifest", "decoder"):
            (work / part).mkdir()
            for file in engine_dir.iterdir():
                (work / part / file.name).write_bytes(file.read_bytes())
        for part in ("gguf", "safetensors"):
            (work / part).mkdir()
        stops = st.tuples(st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(st.text("ab\n", max_size=4), max_size=12))
        shapes = st.tuples(st.integers(-1, 80), st.integers(-1, 12), st.integers(-1, 12), st.integers(0, 99))
        yield [
            FuzzTarget("manifest", 0.3, *manifests(work / "manifest")),
            FuzzTarget("decoder", 0.005, *decoders(work / "decoder")),
            FuzzTarget("prompt", 0.2, prompts, check_text(decoder)),
            FuzzTarget("stop strings", 0.2, stops, check_stops),
            FuzzTarget("tree shapes", 0.045, shapes, check_tree),
            FuzzTarget("gguf", 0.1, *files("model.gguf", a_gguf(work), work / "gguf", GgufCheckpoint)),
            FuzzTarget("safetensors", 0.1, *files("model.safetensors", a_safetensors(work), work / "safetensors",
                                              lambda file: open_files(file.parent))),
            FuzzTarget("request", 0.05, st.tuples(prompts, parameters), check_request(decoder)),
        ]  # fmt: skip


def run(target: FuzzTarget, cases: int, first_seed: int) -> Counter[str]:
    """How the cases ended, by the class of the raised exception. An unexpected one is raised again for the smallest case."""
    ended: Counter[str] = Counter()

    @seed(first_seed)
    @settings(
        max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink]
    )
    @given(target.cases)
    def fuzz(case: Any) -> None:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            target.check(case)
            ended["fine"] += 1
        except EXPECTED as error:
            ended[type(error).__name__] += 1
            if isinstance(error, RespsError):
                expect("\n" not in str(error), f"more than a line: {error}")
        finally:
            faulthandler.cancel_dump_traceback_later()

    fuzz()
    return ended


@click.command()
@options.engine_dir
@click.option("--cases", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--seed", "first_seed", type=int, default=0, show_default=True)
@click.option("--target", "names", multiple=True, help="Only this target; may be repeated [default: all].")
def main(engine_dir: Path, cases: int, first_seed: int, names: tuple[str, ...]) -> None:
    """Fuzz everything that reads untrusted input."""
    report = {}
    with targets(engine_dir) as found:
        if unknown := set(names) - {target.name for target in found}:
            raise click.UsageError(f"--target knows {', '.join(target.name for target in found)}, not {', '.join(sorted(unknown))}")
        for target in found:
            if not names or target.name in names:
                report[target.name] = dict(run(target, max(10, int(cases * target.share)), first_seed))
                click.echo(f"{target.name} {report[target.name]}")
    click.echo(json.dumps({"cases": sum(sum(each.values()) for each in report.values()), "ended": report}))


if __name__ == "__main__":
    main()
