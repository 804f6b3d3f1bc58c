"""resps-export: a model's name or weights -> a checked engine directory."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import click

from runtime.console import run_command, set_verbosity

DEFAULT_OUT, DEFAULT_CONTEXT, DEFAULT_PREFILL_ROWS = Path("engines"), 4096, 128
PRECISION_NAMES = ("fp32", "fp16", "bf16", "int8", "int4")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", help="A known name: smollm2-135m, llama3-8b, ... (an unknown one lists them all).")
@click.option("--weights", metavar="DIR|FILE.gguf|HUB-ID", help="Take the weights from here instead.")
@click.option("--draft-weights", metavar="DIR|HUB-ID", help="EAGLE-3 draft of the target, where the model's own is not wanted.")
@click.option("--no-draft", is_flag=True, help="Export the target alone.")
@click.option(
    "--draft-precision", type=click.Choice(PRECISION_NAMES), help="Precision of the draft [default: int8 beside fp32, int8 and int4]."
)
@click.option("--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Where engine directories lie.")
@click.option("--name", help="Directory below --out [default: the model, with the precision unless fp32].")
@click.option(
    "--precision", type=click.Choice(PRECISION_NAMES), default="fp32", show_default=True, help="int8 and int4 quantize weights only."
)
@click.option(
    "--max-context", type=click.IntRange(16, 1 << 20), default=DEFAULT_CONTEXT, show_default=True, help="Most tokens of prompt and answer."
)
@click.option(
    "--prefill-rows", type=click.IntRange(1, 4096), default=DEFAULT_PREFILL_ROWS, show_default=True, help="Prompt tokens per pass."
)
@click.option("--force", is_flag=True, help="Export even if the directory is up to date.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan (with --dry-run) or the manifest as JSON.")
@click.option("-v", "--verbose", count=True, help="Say what is done; -vv shows tracebacks.")
@click.version_option(package_name="resps")
def command(
    model: str | None,
    weights: str | None,
    draft_weights: str | None,
    no_draft: bool,
    draft_precision: str | None,
    out: Path,
    name: str | None,
    precision: str,
    max_context: int,
    prefill_rows: int,
    force: bool,
    dry_run: bool,
    as_json: bool,
    verbose: int,
) -> None:
    """Turn a target model and its draft into an engine directory that resps-run and runtime.Decoder load."""
    set_verbosity(verbose)
    if model is None and weights is None:
        raise click.UsageError("give --model NAME or --weights DIR, FILE.gguf or a hub id")
    if no_draft and (draft_weights or draft_precision):
        raise click.UsageError("--no-draft goes with neither --draft-weights nor --draft-precision")
    from .models import ModelEntry, model_entry

    entry = model_entry(model) if model is not None else ModelEntry(weights or "", None)
    label = model or Path(weights or "").name.removesuffix(".gguf") or "model"
    folder = name or (label if precision == "fp32" else f"{label}-{precision}")
    if Path(folder).name != folder or folder.startswith("."):
        raise click.UsageError(f"--name must be a plain directory name, not {folder!r}")

    from .build import export, is_current, source_of
    from .draft_checkpoint import open_draft
    from .fetch import locate, locate_draft, open_checkpoint, planned_arch, planned_draft
    from .layers import PRECISIONS
    from .plan import PlannedDraft, default_draft_precision, make_plan

    click.echo("weights: locating", err=True)
    checkpoint = None if dry_run else open_checkpoint(locate(entry, weights))
    arch = checkpoint.arch if checkpoint else planned_arch(entry, weights)
    draft_directory = None if no_draft or checkpoint is None else locate_draft(entry, draft_weights)
    draft = open_draft(draft_directory, checkpoint) if draft_directory and checkpoint else None
    found = (draft.path.name, draft.arch) if draft else None if no_draft or checkpoint else planned_draft(entry, draft_weights, arch)
    if found is None and draft_precision:
        raise click.UsageError("--draft-precision needs a draft: give --draft-weights, or a --model that has one")
    chosen = draft_precision or default_draft_precision(precision)
    planned = PlannedDraft(*found, chosen) if found else None
    plan = make_plan(out / folder, label, arch, PRECISIONS[precision], max_context, prefill_rows, planned)
    if checkpoint is None:
        click.echo(json.dumps(asdict(plan), default=str) if as_json else "\n".join(plan.lines()))
        return
    sizes = {"max_context": max_context, "prefill_rows": prefill_rows}
    options = {"model": label, "precision": precision, "draft_precision": plan.draft_precision, **sizes}
    source = source_of(checkpoint, draft, options)
    if not force and is_current(plan, source):
        stored = plan.directory / "manifest.json"
        click.echo(stored.read_text(encoding="utf-8").rstrip() if as_json else f"{plan.directory} is up to date")
        return
    given = _given(model, weights, draft_weights, draft_precision, name, precision, max_context, prefill_rows, out)
    rebuild = shlex.join(["resps-export", *given, *(["--no-draft"] if no_draft else []), "--force"])
    manifest = export(plan, checkpoint, draft, source, rebuild, entry.chat_template, _progress)
    ready = f"{plan.directory} is ready: max |logit difference| {manifest.check.max_abs_logit_diff:.1e}"
    click.echo(manifest.to_json().rstrip() if as_json else ready)


def _given(*values: object) -> list[str]:
    """The options of this call that are not their defaults, as they would be typed."""
    names = (
        "--model",
        "--weights",
        "--draft-weights",
        "--draft-precision",
        "--name",
        "--precision",
        "--max-context",
        "--prefill-rows",
        "--out",
    )
    defaults = (None, None, None, None, None, "fp32", DEFAULT_CONTEXT, DEFAULT_PREFILL_ROWS, DEFAULT_OUT)
    given = [(name, value) for name, value, default in zip(names, values, defaults, strict=True) if value != default]
    return [text for name, value in given for text in (name, str(value))]


def _progress(stage: str, done: int, total: int) -> None:
    """A counter that overwrites itself on a terminal, one line per stage elsewhere."""
    if sys.stderr.isatty():
        click.echo(f"\r{stage}: {done}/{total}", err=True, nl=done == total)
    elif done in (1, total):
        click.echo(f"{stage}: {'done' if done == total else 'writing'}", err=True)


def main() -> None:
    """Entry point of resps-export."""
    sys.exit(run_command(command, "resps-export"))
