"""How much memory do forks take?

    python -m scripts.lab.fork_memory --engine-dir DIR

Prints JSON: MiB of the process with 1, 2 and 4 forks over one copy of the weights, each after one answer. Their speed:
resps-bench --clients 2 --replicas 1 --replicas 2.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from runtime import Decoder, SamplingParams
from runtime.bench.questions import read_questions
from runtime.console import run_command
from scripts import options


def resident() -> float:
    """Resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


@click.command()
@options.engine_dir
def main(engine_dir: Path) -> None:
    """Measure the memory of forks."""
    (question,) = read_questions([], 1)
    memory: dict[int, float] = {}
    with ExitStack() as stack:
        forks = [stack.enter_context(Decoder(engine_dir, threads=1))]
        for count in (1, 2, 4):
            forks += [stack.enter_context(forks[0].fork()) for _ in range(count - len(forks))]
            for fork in forks:
                fork.forget()
                fork.generate(question.turns[0], SamplingParams(max_new_tokens=16))
            memory[count] = round(resident(), 1)
    click.echo(json.dumps({"memory_mib": memory}))


if __name__ == "__main__":
    sys.exit(run_command(main, "fork_memory"))
