"""resps-train: conversations of a target -> an EAGLE-3 draft for it. Needs the extra train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from runtime import options
from runtime.console import run_command
from runtime.options import OUTPUT, option

TARGET, DATA, TRAINING = "Target", "Data", "Training"
FOLDER = click.Path(path_type=Path, file_okay=False)
EXISTING_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)

target = options.combined(
    option(TARGET, "--model", metavar="NAME", default="smollm2-135m", help="A known model, as in resps-export."),
    option(TARGET, "--weights", metavar="DIR|FILE.gguf|HUB-ID", help="Take the weights from here instead."),
    option(TARGET, "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where to compute."),
)
generation = options.combined(
    option(DATA, "--out", type=FOLDER, required=True, help="Directory of the shards; shards that are there stay."),
    option(DATA, "--batch", type=click.IntRange(min=1), default=256, help="Conversations side by side."),
    option(DATA, "--capacity", type=click.IntRange(min=2), default=448, help="Most tokens of a conversation."),
)


SEED = click.IntRange(min=0)


@click.group(
    cls=options.Group,
    no_args_is_help=False,
    epilog="""\
resps-train words --out data --tokens 1000000
resps-train train --data data --out run --minutes 120
resps-train pack --run run --out draft
resps-export --model smollm2-135m --draft-weights draft --name trained""",
)
@click.version_option(package_name="resps")
def command() -> None:
    """Train an EAGLE-3 draft on text that its target wrote.

    Every step may be interrupted and started again: finished shards stay, and a run continues from its last checkpoint.
    """


@command.command(
    epilog="""\
resps-train words --out data
resps-train words --weights DIR --out data --tokens 5000000 --device cuda --seed 1"""
)
@target
@generation
@option(DATA, "--seed", type=SEED, default=0, help="Another seed gives other conversations.")
@option(DATA, "--tokens", type=click.IntRange(min=1), default=1_000_000, help="Tokens to write now, besides those that are there.")
@options.general
def words(model: str, weights: str | None, device: str, out: Path, batch: int, capacity: int, seed: int, tokens: int) -> None:
    """Let the target write conversations; store its hidden states."""
    from .collect import Generation, collect_words, open_target

    for line in collect_words(open_target(model, weights), out, Generation(batch, capacity, device), seed, tokens):
        click.echo(line)


@command.command(epilog="resps-train answers --out data answers.jsonl")
@target
@generation
@click.argument("file", type=options.FILE)
@options.general
def answers(model: str, weights: str | None, device: str, out: Path, batch: int, capacity: int, file: Path) -> None:
    """Store the hidden states of conversations written earlier.

    FILE is what the target wrote: JSON lines with prompt and answer, and "finished": false for an answer that was cut.
    """
    from .collect import Generation, collect_answers, open_target

    for line in collect_answers(open_target(model, weights), out, Generation(batch, capacity, device), file):
        click.echo(line)


@command.command(
    epilog="""\
resps-train train --data data --out run
resps-train train --data data --out run --minutes 600 --device cuda --batch-tokens 16384"""
)
@target
@option(DATA, "--data", type=EXISTING_FOLDER, required=True, help="Directory of the shards.")
@option(OUTPUT, "--out", type=FOLDER, required=True, help="Directory of the run; a run that is there continues.")
@option(TRAINING, "--minutes", metavar="N", type=click.FloatRange(min=0, min_open=True), default=120.0,
        help="Length of the whole run, over which the learning rate falls.")  # fmt: skip
@option(TRAINING, "--steps", type=click.IntRange(min=1), default=7, help="Unrolled steps of the training-time test.")
@option(TRAINING, "--vocab", type=click.IntRange(min=3), default=8192, help="Size of the draft's vocabulary.")
@option(TRAINING, "--rate", metavar="X", type=click.FloatRange(min=0, min_open=True), default=5e-4, help="Peak learning rate.")
@option(TRAINING, "--batch-tokens", type=click.IntRange(min=1), default=4096, help="Tokens per update, padding included.")
@option(TRAINING, "--seed", type=SEED, default=0, help="Seed of the weights and of the order of the data.")
@options.general
def train(model: str, weights: str | None, device: str, data: Path, out: Path, **settings: Any) -> None:
    """Train the draft on the data.

    A checkpoint is saved every two minutes. Every five minutes the agreement of draft and target on held-out conversations is measured,
    printed and added to log.jsonl.
    """
    from ..checkpoints.fetch import locate, open_checkpoint
    from ..checkpoints.models import model_entry
    from .run import TrainingRun, TrainingSettings
    from .target import torch_device

    checkpoint = open_checkpoint(locate(model_entry(model), weights))
    for line in TrainingRun(checkpoint, data, out, TrainingSettings(**settings), torch_device(device)).train():
        click.echo(line)


@command.command(
    epilog="""\
resps-train pack --run run --out draft
resps-train pack --run run --out draft --form speculators --verifier HuggingFaceTB/SmolLM2-135M-Instruct"""
)
@option(DATA, "--run", type=EXISTING_FOLDER, required=True, help="Directory of the run.")
@option(OUTPUT, "--out", type=FOLDER, required=True, help="Directory for config.json and model.safetensors (bfloat16).")
@option(OUTPUT, "--form", type=click.Choice(["specforge", "speculators"]), default="specforge", help="Checkpoint format.")
@option(OUTPUT, "--verifier", metavar="HUB-ID", default="HuggingFaceTB/SmolLM2-135M-Instruct",
        help="Name of the target, for --form speculators.")  # fmt: skip
@options.general
def pack(run: Path, out: Path, form: str, verifier: str) -> None:
    """Write the draft of a run as a checkpoint for resps-export."""
    from .pack import pack_run

    pack_run(run, out, form, verifier)
    click.echo(f"{out} is written")


def main() -> None:
    """Entry point of resps-train."""
    sys.exit(run_command(command, "resps-train", extra="train"))
