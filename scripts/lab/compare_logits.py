"""How far are the distributions of quantized engines from those of a first one? Mean KL divergence, and how often the argmax agrees.

    python -m scripts.lab.compare_logits --engine-dir FP32_DIR --engine-dir INT8_DIR --engine-dir INT4_DIR [--answers 20] ANSWERS.jsonl

Lines are objects with `prompt` and `answer`, rendered by the first engine's chat template. Every engine computes its logits at each token
of the answer, in passes of as many rows as scripts/peers uses for the same comparison.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click
import numpy as np

from runtime import Decoder
from runtime.console import run_command, usage_errors
from runtime.errors import PromptError
from scripts import options
from scripts.lab.count_repeats import of_answers
from scripts.peers.compare import Closeness, closeness
from scripts.peers.engines.resps import logits_of


def compare(decoders: Sequence[Decoder], file: Path, engine_dir: Path, answers: int, max_tokens: int) -> list[Closeness]:
    """Closeness of every decoder but the first to the first.

    ``engine_dir``: the engine whose tokenizer is used. ``answers``: largest number of lines. ``max_tokens``: tokens of a prompt with its
    answer; the rest is cut. Raises PromptError for a file without answers.
    """
    results: list[list[Closeness]] = [[] for _ in decoders[1:]]
    longest = min(max_tokens, *(decoder.manifest.limits.context for decoder in decoders))
    for tokens, start in islice(_conversations(file, engine_dir, longest), answers):
        reference = _read(decoders[0], tokens, start)
        for index, decoder in enumerate(decoders[1:]):
            results[index].append(closeness([(reference, _read(decoder, tokens, start))]))
    if not results[0]:
        raise PromptError(f"{file} has no answer within {longest} tokens — give a line with prompt and answer, see --help")
    return [_pooled(parts) for parts in results]


def _conversations(file: Path, engine_dir: Path, longest: int) -> Iterator[tuple[list[int], int]]:
    """(tokens of prompt and answer, number of prompt tokens), if any token of the answer is left."""
    for tokens, answered in of_answers(file, engine_dir):
        if any(answered[:longest]):
            yield tokens[:longest], answered.index(True)


def _read(decoder: Decoder, tokens: list[int], start: int) -> np.ndarray:
    """Logits at which the tokens from ``start`` on are chosen, float32 [n, V]."""
    return logits_of(decoder, tokens[:-1], start - 1)


def _pooled(parts: Sequence[Closeness]) -> Closeness:
    """Averages over all positions."""
    counts = [part.positions for part in parts]
    kl, agreement = (float(np.average([getattr(part, name) for part in parts], weights=counts)) for name in ("mean_kl", "agreement"))
    return Closeness(kl, agreement, sum(counts))


@click.command()
@options.engine_dirs
@click.option("--answers", type=click.IntRange(1), default=20, show_default=True, help="Number of lines.")
@click.option(
    "--most-tokens", type=click.IntRange(2), default=420, show_default=True, help="Limit of a prompt with its answer; the rest is cut."
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(engine_dirs: tuple[Path, ...], answers: int, most_tokens: int, threads: int, as_json: bool, file: Path) -> None:
    """Print a table in Markdown."""
    if len(engine_dirs) < 2:
        raise click.UsageError("a comparison needs two engines: give --engine-dir twice or more")
    with ExitStack() as stack:
        decoders = [stack.enter_context(Decoder(directory, policy="none", draft="none", threads=threads)) for directory in engine_dirs]
        with usage_errors():  # vocabularies that differ
            results = compare(decoders, file, engine_dirs[0], answers, most_tokens)
    if as_json:
        rows = [{"engine_dir": str(name), **asdict(result)} for name, result in zip(engine_dirs[1:], results, strict=True)]
        click.echo(json.dumps({"reference": str(engine_dirs[0]), "engines": rows}))
        return
    click.echo(f"to {engine_dirs[0]}, {results[0].positions} positions\n\n| engine | mean KL | same argmax |\n| --- | --- | --- |")
    for name, result in zip(engine_dirs[1:], results, strict=True):
        click.echo(f"| {name} | {result.mean_kl:.5f} | {result.agreement:.4f} |")


if __name__ == "__main__":
    sys.exit(run_command(main, "compare_logits"))
