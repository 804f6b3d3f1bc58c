"""Counts the answers with random parameters and constraints that differ from plain decoding with the same parameters.

    python -m tests.stress.check_parameters --engine-dir DIR [--lanes 4] [--tokens 20000]

The answers come from a Decoder with lanes, which are kept full, over random trees and policies; plain decoding has one lane and no draft.
Complete answers in JSON are also validated. Prints one JSON object and one line for each difference; the exit code is 1 if there was one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from policy import FixedPolicy
from runtime import Constraint, Decoder, SamplingParams
from runtime.console import run_command
from runtime.decoder import Prompt
from scripts import options
from tests.stress.check_lossless import SHAPES
from tests.support.constraints import schemas, valid
from tests.support.prompts import PROMPTS


@dataclass(frozen=True)
class Case:
    """One request. ``policy``: a name, or the place of a tree in SHAPES. ``schema``: that of its constraint."""

    prompt: Prompt
    params: SamplingParams
    policy: str | int
    schema: dict[str, object] | None


def cases(seed: int, vocab: int) -> Iterator[Case]:
    """Random requests without end, for a model of ``vocab`` tokens."""
    random = np.random.default_rng(seed)
    policies = ["none", "fixed", "cost-model", *range(len(SHAPES))]
    others = [
        None,
        Constraint.json_object(),
        Constraint.regex(r"[A-Z][a-z ,]{5,60}\."),
        Constraint.choice(["yes, of course", "yes, but not today", "no"]),
        Constraint.grammar('root ::= "- " [a-z ]+ ("\\n- " [a-z ]+)+'),
    ]
    while True:
        schema = next(schemas(int(random.integers(1 << 31)), 1)) if random.random() < 0.3 else None
        constraint = Constraint.json_schema(schema) if schema else others[int(random.integers(len(others)))]
        yield Case(
            PROMPTS[int(random.integers(len(PROMPTS)))],
            _params(random, constraint, vocab),
            policies[int(random.integers(len(policies)))],
            schema,
        )


def _params(random: np.random.Generator, constraint: Constraint | None, vocab: int) -> SamplingParams:
    """Each parameter is set in a third of the requests, the temperature in half of them."""

    def third(value: Any, otherwise: Any) -> Any:
        return value if random.random() < 1 / 3 else otherwise

    return SamplingParams(
        temperature=float(random.choice([0, 0, 0.5, 1])),
        seed=int(random.integers(1 << 31)),
        top_k=third(20, 0),
        top_p=third(0.9, 1.0),
        min_p=third(0.05, 0.0),
        typical_p=third(0.9, 1.0),
        presence_penalty=third(float(random.uniform(-1, 2)), 0.0),
        frequency_penalty=third(float(random.uniform(-1, 2)), 0.0),
        repetition_penalty=third(float(random.uniform(0.8, 1.5)), 1.0),
        logit_bias=third({int(token): float(random.uniform(-10, 5)) for token in random.integers(vocab, size=5)}, {}),
        min_tokens=third(20, 0),
        ignore_eos=constraint is None and bool(random.random() < 0.2),
        stop_token_ids=third([28, 30], []),
        stop=third(["\n\n", ". The"], []),
        bad_words=third(["the", "of course"], []),
        logprobs=third(2, None),
        max_new_tokens=int(random.integers(20, 80)),
        constraint=constraint,
    )


def check(engine_dir: Path, lanes: int, tokens: int, seed: int, threads: int) -> dict[str, object]:
    """Counts, with ``differ`` and ``invalid`` among them."""
    came = {"answers": 0, "tokens": 0, "constrained": 0, "complete JSON": 0, "differ": 0, "invalid": 0}
    with Decoder(engine_dir, lanes=lanes, threads=threads) as tree, Decoder(engine_dir, draft="none", threads=threads) as plain:

        def answer(case: Case) -> tuple[int, ...]:
            policy = case.policy if isinstance(case.policy, str) else FixedPolicy(SHAPES[case.policy])
            return tree.generate(case.prompt, case.params, policy=policy).tokens

        source = cases(seed, tree.manifest.shape.vocab)
        with ThreadPoolExecutor(lanes) as pool:
            while came["tokens"] < tokens:
                group = [next(source) for _ in range(8 * lanes)]
                for case, found in zip(group, pool.map(answer, group), strict=True):
                    expected = plain.generate(case.prompt, case.params, policy="none")
                    came["answers"] += 1
                    came["tokens"] += len(expected.tokens)
                    came["constrained"] += case.params.constraint is not None
                    if found != expected.tokens:
                        came["differ"] += 1
                        click.echo(f"{case}: {found} instead of {expected.tokens}", err=True)
                    if case.schema and expected.stop == "eos" and expected.tokens[-1] not in case.params.stop_token_ids:
                        came["complete JSON"] += 1
                        came["invalid"] += not valid(expected.text, case.schema)
    return dict(came)


@click.command()
@options.engine_dir
@click.option("--lanes", type=click.IntRange(min=2), default=4, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=20_000, show_default=True, help="Tokens to compare at least.")
@click.option("--seed", default=1, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(engine_dir: Path, lanes: int, tokens: int, seed: int, threads: int) -> None:
    """Compare answers with random parameters to plain decoding."""
    started = time.monotonic()
    came = check(engine_dir, lanes, tokens, seed, threads)
    click.echo(json.dumps({**came, "seconds": round(time.monotonic() - started)}))
    sys.exit(1 if came["differ"] or came["invalid"] else 0)


if __name__ == "__main__":
    sys.exit(run_command(main, "check_parameters"))
