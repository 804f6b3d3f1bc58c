"""Train an EAGLE-3 draft for a target on the target's own words.

    resps-train words --out data --tokens 1000000      # the target writes conversations
    resps-train answers --out data FILE.jsonl          # or reads some that it wrote earlier
    resps-train train --data data --out run --minutes 120
    resps-train pack --run run --out DIR

Needs the extra `train`. Everything may be stopped and started again: shards that are there stay, a run goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from runtime.manifest.schema import Tokens
from runtime.text.tokenizer import Tokenizer

from ..checkpoints.fetch import locate, open_checkpoint
from ..checkpoints.gguf import GgufCheckpoint
from ..checkpoints.models import model_entry
from ..checkpoints.safetensors import Checkpoint
from ..checkpoints.tokenizer import tokenizer_of_directory, tokenizer_of_gguf
from .openings import openings
from .run import Training, TrainingSettings, finished, pack_run
from .shards import ShardWriter
from .target import TorchTarget
from .words import ANSWER, FORCED, PROMPT, Frame, Stretch, converse, frame_of, script


@dataclass(frozen=True)
class TrainingTarget:
    """A target and its tokenizer."""

    checkpoint: Checkpoint
    text: Tokenizer
    frame: Frame


def open_source(model: str, weights: str | None) -> TrainingTarget:
    """Find the target as resps-export does."""
    entry = model_entry(model)
    checkpoint = open_checkpoint(locate(entry, weights))
    if isinstance(checkpoint, GgufCheckpoint):
        files = tokenizer_of_gguf(checkpoint)
    else:
        files = tokenizer_of_directory(checkpoint.path, entry.chat_template)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        (directory / "tokenizer.json").write_text(files.tokenizer_json, encoding="utf-8")
        (directory / "chat_template.jinja").write_text(files.chat_template or "", encoding="utf-8")
        text = Tokenizer(directory, Tokens("tokenizer.json", "chat_template.jinja", files.stop, files.bos))
    return TrainingTarget(checkpoint, text, frame_of(text, files.stop))


model_option = click.option("--model", default="smollm2-135m", show_default=True)
weights_option = click.option("--weights", default=None, help="Checkpoint of the target, where the model's own source is not wanted.")
device_option = click.option("--device", default="cpu", show_default=True)
seed_option = click.option("--seed", default=0, show_default=True)


@click.group()
def main() -> None:
    """Train an EAGLE-3 draft on the target's own words."""


@main.command()
@model_option
@weights_option
@device_option
@seed_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory of the shards; more are added to those there.")
@click.option("--tokens", default=1_000_000, show_default=True, help="How many tokens to write in this run.")
@click.option("--batch", default=256, show_default=True, help="Conversations side by side.")
@click.option("--capacity", default=448, show_default=True, help="Longest conversation.")
def words(model: str, weights: str | None, device: str, seed: int, out: Path, tokens: int, batch: int, capacity: int) -> None:
    """Let the target write conversations, and keep what it computed on the way."""
    writer, source = _writer(out, f"words-{seed:03d}"), open_source(model, weights)
    choice = random.Random(seed)
    scripts = (script(opening, source.text, source.frame, choice) for opening in openings(seed, longest=600))
    target = TorchTarget(source.checkpoint, batch, capacity, torch.device(device), torch.bfloat16)
    _write(target, scripts, batch, source.frame, seed, writer, tokens)


@main.command()
@model_option
@weights_option
@device_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory of the shards; more are added to those there.")
@click.option("--batch", default=256, show_default=True)
@click.option("--capacity", default=448, show_default=True)
@click.argument("file", type=click.Path(path_type=Path, exists=True))
def answers(model: str, weights: str | None, device: str, out: Path, batch: int, capacity: int, file: Path) -> None:
    """Read conversations that the target wrote earlier: JSON lines with `prompt` and `answer`."""
    writer, source = _writer(out, f"answers-{file.stem}"), open_source(model, weights)
    frame, raw = source.frame, source.text.encode_raw
    ending = [min(frame.stop)]
    scripts = [
        [
            Stretch(FORCED, frame.before),
            Stretch(PROMPT, raw(each["prompt"])),
            Stretch(FORCED, frame.after),
            Stretch(ANSWER, raw(each["answer"]) + (ending if each.get("finished", True) else [])),
        ]
        for each in map(json.loads, file.read_text(encoding="utf-8").splitlines())
    ]
    tokens = sum(min(capacity, sum(len(stretch.forced) for stretch in each)) for each in scripts)
    filler = ([Stretch(FORCED, frame.before)] for _ in iter(int, 1))  # keeps the batch full until the last conversation is done

    def all_of_them() -> Iterator[list[Stretch]]:
        yield from scripts
        yield from filler

    target = TorchTarget(source.checkpoint, batch, capacity, torch.device(device), torch.bfloat16)
    _write(target, all_of_them(), batch, frame, 0, writer, tokens)


def _writer(out: Path, stem: str) -> ShardWriter:
    try:
        return ShardWriter(out, stem)
    except FileExistsError as error:
        raise click.UsageError(str(error)) from None


def _write(
    target: TorchTarget, scripts: Iterator[list[Stretch]], batch: int, frame: Frame, seed: int, writer: ShardWriter, tokens: int
) -> None:
    began = time.monotonic()
    for conversation in converse(target, scripts, batch, frame.stop, seed):
        if bool((conversation.kinds != FORCED).any()) and writer.add(conversation):
            click.echo(f"{writer.written:,} tokens, {writer.written / (time.monotonic() - began):.0f} tokens/s")
        if writer.written >= tokens:
            break
    writer.flush()


@main.command()
@model_option
@weights_option
@device_option
@seed_option
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Directory of shards.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory of the run; a run that is there goes on.")
@click.option("--minutes", default=120.0, show_default=True, help="Length of the whole run, over which the learning rate falls.")
@click.option("--steps", default=7, show_default=True, help="Unrolled steps (training-time test).")
@click.option("--vocab", default=8192, show_default=True, help="Size of the draft's vocabulary.")
@click.option("--rate", default=5e-4, show_default=True, help="Peak learning rate.")
@click.option("--batch-tokens", default=4096, show_default=True, help="Tokens per update, padding included.")
def train(
    model: str,
    weights: str | None,
    device: str,
    seed: int,
    data: Path,
    out: Path,
    minutes: float,
    steps: int,
    vocab: int,
    rate: float,
    batch_tokens: int,
) -> None:
    """Train, checkpointing every two minutes; the held-out agreement is printed and kept in log.jsonl."""
    settings = TrainingSettings(steps=steps, vocab=vocab, rate=rate, batch_tokens=batch_tokens, minutes=minutes, seed=seed)
    training = Training(open_source(model, weights).checkpoint, data, out, settings, torch.device(device))
    for line in training.go():
        click.echo(line)


@main.command()
@click.option("--run", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory for config.json and model.safetensors (bfloat16).")
@click.option("--form", type=click.Choice(["specforge", "speculators"]), default="specforge", show_default=True)
@click.option(
    "--verifier", default="HuggingFaceTB/SmolLM2-135M-Instruct", show_default=True, help="The target's name for --form speculators."
)
def pack(run: Path, out: Path, form: str, verifier: str) -> None:
    """Write the draft of a run in a form that resps-export and other engines read."""
    pack_run(run, out, form, verifier)
    click.echo(f"{out} is written; {finished(run)}")


if __name__ == "__main__":
    main()
