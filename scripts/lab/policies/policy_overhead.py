"""What share of the decode time do a policy's own decisions take?

python -m scripts.lab.policies.policy_overhead --engine-dir DIR [--policy NAME]... [--prompts FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from export.tuning.prompts import read_prompts
from export.tuning.replay.record import as_chat
from policy import GrowthPolicy, Observation, Outcome, PartialTree, Policy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from scripts import options


class Clock:
    """Wraps a policy and sums up the ``seconds`` of its ``calls``."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.seconds, self.calls = policy, 0.0, 0

    def timed(self, verb: str, *arguments: Any) -> Any:
        started = perf_counter()
        answer = getattr(self.policy, verb)(*arguments)
        self.seconds += perf_counter() - started
        self.calls += 1
        return answer

    def begin(self) -> None:
        self.timed("begin")

    def choose(self, observation: Observation) -> TreeSpec:
        spec: TreeSpec = self.timed("choose", observation)
        return spec

    def observe(self, outcome: Outcome) -> None:
        self.timed("observe", outcome)


class GrowthClock(Clock):
    """The same for a policy that also decides while a tree is drafted."""

    def should_expand(self, partial_tree: PartialTree) -> bool:
        return bool(self.timed("should_expand", partial_tree))

    def num_nodes(self, partial_tree: PartialTree) -> int:
        return int(self.timed("num_nodes", partial_tree))


@click.command()
@options.engine_dir
@click.option("--policy", "names", multiple=True, help="By name [default: all that are available].")
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), help="Prompts [default: those of resps-tune].")
@click.option("--most", default=10, show_default=True, help="Number of prompts.")
def main(engine_dir: Path, names: tuple[str, ...], prompts: Path | None, most: int) -> None:
    """Print a table in Markdown."""
    click.echo("| policy | calls a round | microseconds a call | of decode time |\n| --- | --- | --- | --- |")
    with Decoder(engine_dir, draft="eagle") as decoder:
        for name in names or decoder.policies:
            policy = decoder.policy(name)
            clock = GrowthClock(policy) if isinstance(policy, GrowthPolicy) else Clock(policy)
            seconds, rounds = 0.0, 0
            for prompt in read_prompts(prompts)[:most]:
                stats = decoder.generate(as_chat(decoder, prompt), SamplingParams(max_new_tokens=128), policy=clock).stats
                seconds, rounds = seconds + stats.decode_seconds, rounds + stats.cycles
            per_call = 1e6 * clock.seconds / clock.calls
            click.echo(f"| {name} | {clock.calls / rounds:.1f} | {per_call:.1f} | {clock.seconds / seconds:.2%} |")


if __name__ == "__main__":
    sys.exit(run_command(main, "policy_overhead"))
