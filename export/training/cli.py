"""resps-train: conversations of a target -> an EAGLE-3 draft for it. Needs the extra train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from runtime import options
from runtime.console import progress, run_command
from runtime.options import OUTPUT, option

from .names import LOSSES, NORMS, SHARES

TARGET, DATA, TRAINING = "Target", "Data", "Training"
FOLDER = click.Path(path_type=Path, file_okay=False)
EXISTING_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
EXISTING = click.Path(path_type=Path, exists=True)
SEED = click.IntRange(min=0)

target = options.combined(
    option(TARGET, "--model", metavar="NAME", default="smollm2-135m", help="A known model, as in resps-export."),
    option(TARGET, "--weights", metavar="DIR|FILE.gguf|HUB-ID", help="Take the weights from here instead."),
    option(TARGET, "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where to compute."),
)


class Weight(click.ParamType[tuple[str, float]]):
    """KIND=FACTOR."""

    name = "weight"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        kind, _, factor = str(value).rpartition("=")
        try:
            weight = float(factor)
        except ValueError:
            weight = -1.0
        if not kind or not 0 <= weight <= 1000:
            self.fail(f"{value!r} is not a kind of text and a factor from 0 to 1000, such as 'long text=3'", param, ctx)
        return kind, weight


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

    Every step may be killed and started again: finished shards stay, and a run continues from its last checkpoint.
    """


@command.command(
    epilog="""\
resps-train words --out data
resps-train words --out data --seed 1 --text "long text" --text passage
resps-train words --out data --seed 2 --text "long text" --long-texts articles.txt
resps-train words --weights DIR --out data --tokens 5000000 --device cuda --seed 1"""
)
@target
@option(DATA, "--out", type=FOLDER, required=True, help="Directory of the shards; shards that are there stay.")
@option(DATA, "--tokens", type=click.IntRange(min=1), default=1_000_000, help="Tokens to write now, besides those that are there.")
@option(DATA, "--text", "kinds", multiple=True, metavar="KIND", type=click.Choice(list(SHARES)), show_default="all, in fixed shares",
        help=f"A kind of text; may be repeated. One of {', '.join(SHARES)}.")  # fmt: skip
@option(DATA, "--long-texts", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="Texts to ask about, one a line, in place of passages of Python's language reference.")  # fmt: skip
@option(DATA, "--batch", type=click.IntRange(min=1), default=128, help="Conversations side by side.")
@option(DATA, "--capacity", type=click.IntRange(min=2), default=1024, help="Most tokens of a conversation.")
@option(DATA, "--seed", type=SEED, default=0, help="Another seed gives other conversations.")
@options.general
def words(model: str, weights: str | None, device: str, out: Path, batch: int, capacity: int, **given: Any) -> None:
    """Let the target write conversations."""
    from .words.collect import Generation, collect_words, open_target

    source, generation = open_target(model, weights), Generation(batch, capacity, device)
    written = collect_words(source, out, generation, **given, say=click.echo, progress=progress)
    click.echo(f"{written:,} tokens are in {out}")


@command.command(
    epilog="""\
resps-train train --data data --out run
resps-train train --data data --data old/words.npz --data answers.jsonl --weight "long text=3" --out run
resps-train train --data data --out run --draft export/drafts/smollm2-135m --rate 3e-4
resps-train train --data data --out run --minutes 600 --device cuda --batch-tokens 16384"""
)
@target
@option(DATA, "--data", "sources", type=EXISTING, required=True, multiple=True,
        help="What words wrote, a directory or a file, or JSON lines with prompt and answer; may be repeated.")  # fmt: skip
@option(DATA, "--weight", "weights_of_texts", multiple=True, metavar="KIND=X", type=Weight(),
        help="Take text of this kind so many times in an epoch; of a file without kinds, its name is the kind.")  # fmt: skip
@option(OUTPUT, "--out", type=FOLDER, required=True, help="Directory of the run; a run that is there continues.")
@option(OUTPUT, "--keep", metavar="GIB", type=click.FloatRange(min=0), default=4.0,
        help="Disk for what the target computed, so that it is computed once; the rest is computed in every epoch.")  # fmt: skip
@option(TRAINING, "--draft", type=EXISTING_FOLDER, help="Begin with this draft, its vocabulary and its norms.")
@option(TRAINING, "--minutes", metavar="N", type=click.FloatRange(min=0, min_open=True), default=120.0,
        help="Length of the whole run, over which the learning rate falls.")  # fmt: skip
@option(TRAINING, "--tokens", type=click.IntRange(min=1), help="End, with the learning rate, after so many tokens if that is earlier.")
@option(TRAINING, "--patience", type=click.IntRange(min=0), default=6, help="End after so many reports without a better chain; 0: never.")
@option(TRAINING, "--steps", type=click.IntRange(min=1), default=7, help="Unrolled steps of the training-time test.")
@option(TRAINING, "--vocab", type=click.IntRange(min=3), default=8192, help="Size of the draft's vocabulary.")
@option(TRAINING, "--norms", type=click.Choice(NORMS), default=NORMS[0],
        help="EAGLE-3.1 has a norm for each captured layer, and reads its own features after the last norm.")  # fmt: skip
@option(TRAINING, "--loss", type=click.Choice(LOSSES), default=LOSSES[0],
        help="Learn the target's distribution, its first token, its ten most probable tokens, or the first weighted by reach.")  # fmt: skip
@option(TRAINING, "--rate", metavar="X", type=click.FloatRange(min=0, min_open=True), default=5e-4, help="Peak learning rate.")
@option(TRAINING, "--batch-tokens", type=click.IntRange(min=1), default=4096,
        help="Tokens per update, padding included; a longer conversation is cut.")  # fmt: skip
@option(TRAINING, "--seed", type=SEED, default=0, help="Seed of the weights and of the order of the data.")
@options.general
def train(
    model: str,
    weights: str | None,
    device: str,
    sources: tuple[Path, ...],
    weights_of_texts: tuple[tuple[str, float], ...],
    out: Path,
    draft: Path | None,
    norms: str,
    keep: float,
    **settings: Any,
) -> None:
    """Train the draft on the data.

    A checkpoint is saved every two minutes. Every five minutes, or less often on a slow machine, acceptance on held-out conversations is
    measured, printed, and added to log.jsonl and report.html; the draft is kept if it is the best so far.
    """
    from .run import TrainingSettings
    from .start import start

    wanted = TrainingSettings(**settings, norms=norms == NORMS[1], weights=dict(weights_of_texts), keep=int(keep * 2**30))
    for line in start(model, weights, device, sources, out, draft, wanted, progress):
        click.echo(line)


@command.command(
    epilog="""\
resps-train pack --run run --out draft
resps-train pack --run run --out draft --form speculators --verifier HuggingFaceTB/SmolLM2-135M-Instruct"""
)
@option(DATA, "--run", type=EXISTING_FOLDER, required=True, help="Directory of the run.")
@option(OUTPUT, "--out", type=FOLDER, required=True, help="Directory for config.json and model.safetensors (bfloat16).")
@option(OUTPUT, "--form", type=click.Choice(["specforge", "speculators"]), default="specforge", help="Checkpoint format.")
@option(OUTPUT, "--verifier", metavar="HUB-ID", help="Name of the target; --form speculators needs it.")
@options.general
def pack(run: Path, out: Path, form: str, verifier: str | None) -> None:
    """Write the best draft of a run as a checkpoint for resps-export."""
    from .pack import pack_run

    pack_run(run, out, form, verifier)
    click.echo(f"{out} is written")


def main() -> None:
    """Entry point of resps-train."""
    sys.exit(run_command(command, "resps-train", extra="train"))
