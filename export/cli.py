"""resps-export: a model's name or weights -> a checked engine directory."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime import options
from runtime.console import progress, run_command, usage_errors
from runtime.options import ENGINE, OUTPUT, option
from runtime.standard_streams import say

from .asked import DEFAULT_PRECISIONS, Asked, checked

if TYPE_CHECKING:
    from runtime.manifest.schema import Manifest

    from .checkpoints.arch import Arch
    from .checkpoints.draft_arch import DraftArch
    from .checkpoints.draft_checkpoint import DraftCheckpoint
    from .checkpoints.models import ModelEntry
    from .checkpoints.safetensors import Checkpoint
    from .directory.found_tuning import FoundTuning
    from .plan import Plan
    from .tensorrt.gpu import Platform
    from .text.side import TextSide

    Named = tuple[str, DraftArch] | None

DEFAULT_OUT, DEFAULT_CONTEXT, DEFAULT_PREFILL_ROWS, DEFAULT_TREE_SIZES = Path("engines"), 4096, 128, "1,2,4,8,16,32,64"
PRECISION_NAMES = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
MOST_LANES = 64
CHECKPOINTS = "Checkpoints"


@click.command(
    cls=options.Command,
    epilog="""\
resps-export --model smollm2-135m --precision int8
resps-export --weights DIR --draft-weights DIR --max-context 2048 --name mine
resps-export --model llama3-8b --backend tensorrt --precision fp8 --dry-run""",
)
@option(CHECKPOINTS, "--model", metavar="NAME", help="A known model: smollm2-135m, llama3-8b, ... (an unknown name lists all).")
@option(CHECKPOINTS, "--weights", metavar="DIR|FILE.gguf|HUB-ID", help="Take the weights from here instead.")
@option(
    CHECKPOINTS,
    "--draft-weights",
    metavar="DIR|HUB-ID",
    show_default="the model's own",
    help="EAGLE-3, P-EAGLE or DFlash draft of the target.",
)
@option(CHECKPOINTS, "--policy", type=click.Path(path_type=Path, exists=True), metavar="DIR|FILE",
        show_default="what resps-tune found for this directory, else what comes with the draft",
        help="Trained policy: a tuned engine directory, a folder with a tuning.json, or the file.")  # fmt: skip
@option(CHECKPOINTS, "--no-draft", is_flag=True, help="Export the target alone.")
@option(ENGINE, "--backend", type=click.Choice(tuple(DEFAULT_PRECISIONS)), default="onnxruntime",
        help="What will run the engine; tensorrt builds plans for a GPU.")  # fmt: skip
@option(ENGINE, "--precision", type=click.Choice(PRECISION_NAMES), show_default="fp32; fp16 with tensorrt",
        help="Precision of the target. fp8, int8 and int4 quantize the weights; fp8 needs tensorrt.")  # fmt: skip
@option(ENGINE, "--requantize", is_flag=True, help="Round a quantized checkpoint's weights again instead of keeping its integers.")
@option(ENGINE, "--no-rotation", is_flag=True, help="Leave the residual stream as it is, in int8.")
@option(ENGINE, "--rounding", type=click.Choice(("nearest", "feedback")), show_default="feedback up to a billion weights",
        help="To int8; feedback is closer to the model and slower to export.")  # fmt: skip
@option(ENGINE, "--draft-precision", type=click.Choice(PRECISION_NAMES),
        show_default="int8 with a target of fp32, int8 or int4; fp16 with tensorrt", help="Precision of the draft.")  # fmt: skip
@option(ENGINE, "--max-context", type=click.IntRange(16, 1 << 20), default=DEFAULT_CONTEXT, help="Most tokens of prompt and answer.")
@option(ENGINE, "--prefill-rows", type=click.IntRange(1, 4096), default=DEFAULT_PREFILL_ROWS, help="Prompt tokens per forward pass.")
@option(ENGINE, "--tree-sizes", metavar="N,N,...", default=DEFAULT_TREE_SIZES,
        help="Nodes of draft trees, with the root. The last is the largest; tensorrt tunes for each.")  # fmt: skip
@option(ENGINE, "--lanes", type=click.IntRange(1, MOST_LANES), default=1,
        help="Requests that may share a pass, tensorrt only: more than 1 makes two more plans.")  # fmt: skip
@option(ENGINE, "--compute-capability", metavar="X.Y,...", show_default="of the GPU that is here, else 8.9,12.0",
        help="GPUs to build for, TensorRT-RTX only.")  # fmt: skip
@option(OUTPUT, "--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, help="Folder of the engine directories.")
@option(OUTPUT, "--name", metavar="NAME", show_default="the model, with backend and precision if they are not the default",
        help="Name of the engine directory below --out.")  # fmt: skip
@option(OUTPUT, "--force", is_flag=True, help="Export even if the directory is up to date.")
@option(OUTPUT, "--dry-run", is_flag=True, help="Print the plan and write nothing.")
@option(OUTPUT, "--json", "as_json", is_flag=True, help="Print the manifest as JSON, or the plan with --dry-run.")
@options.general
def command(force: bool, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Turn a target model and its draft into an engine directory that resps-run and runtime.Decoder load."""
    asked = checked(Asked(**given))
    prepared = _prepare(asked, dry_run)
    if dry_run:
        plan = {**asdict(prepared.plan), "text": prepared.text.summary()}
        click.echo(json.dumps(plan, default=str) if as_json else "\n".join([*prepared.plan.lines(), *prepared.text.lines()]))
        return
    _export(asked, prepared, force, as_json)


@dataclass(frozen=True)
class CheckedExport:
    """What an export needs. A dry run downloads no weights: then ``checkpoint`` and ``draft`` are None unless they are local."""

    plan: Plan
    checkpoint: Checkpoint | None
    text: TextSide
    draft: DraftCheckpoint | None
    policy: FoundTuning | None
    platform: Platform | None


def _prepare(asked: Asked, dry_run: bool) -> CheckedExport:
    """Find weights and TensorRT, and plan. A dry run downloads no weights, needs no TensorRT and writes nothing."""
    from .checkpoints.models import ModelEntry, model_entry
    from .directory.given_tuning import given_tuning
    from .directory.install import destination, expect_folder
    from .directory.owned import expect_replaceable
    from .graphs.precision import BACKENDS
    from .plan import PlannedDraft, calibrates, default_draft_precision, make_plan, planned_limits, rotates
    from .rotation.draft import rotated_arch, rotated_draft
    from .rotation.target import RotatedTarget
    from .tensorrt.gpu import choose_platform

    entry = model_entry(asked.model) if asked.model is not None else ModelEntry(asked.weights or "", None)
    directory = destination(asked.out / asked.folder)
    expect_folder(directory.parent, writable=not dry_run)
    if dry_run:  # an export does without if the directory is up to date
        expect_replaceable(directory)
    platform = None
    if asked.backend == "tensorrt" and not dry_run:
        with usage_errors():
            platform = choose_platform(asked.capabilities)
    opened, arch, unknown = _target(asked, entry, dry_run)
    text = _text(asked, entry, opened)
    precision = BACKENDS[asked.backend][asked.chosen_precision]
    draft, found = _draft(asked, entry, opened, arch, dry_run)
    if found is None and (asked.draft_precision or asked.policy):
        option = "--draft-precision" if asked.draft_precision else "--policy"
        raise click.UsageError(f"{option} needs a draft: give --draft-weights, or a --model that has one")
    rotated = not (asked.no_rotation or unknown) and rotates(arch, precision, asked.backend, opened, asked.requantize)
    if rotated:
        arch = replace(arch, tied_head=False)
        opened = RotatedTarget(opened) if opened else None
        draft = rotated_draft(draft, opened) if draft and opened else None
        found = (found[0], rotated_arch(found[1])) if found else None
    policy = None
    if found and asked.policy:
        limits = planned_limits(found[1], asked.sizes, asked.backend, rotated)
        policy = given_tuning(asked.policy, draft.sha256 if draft else None, limits)
    chosen = asked.draft_precision or default_draft_precision(asked.chosen_precision, asked.backend)
    plan = make_plan(
        directory,
        asked.label,
        arch,
        precision,
        asked.max_context,
        asked.prefill_rows,
        PlannedDraft(*found, chosen) if found else None,
        policy.bytes if policy else 0,
        backend=asked.backend,
        tree_sizes=asked.sizes,
        lanes=asked.lanes,
        source=opened,
        requantize=asked.requantize,
        rotated=rotated,
        calibrated=asked.rounding == "feedback" or (asked.rounding is None and calibrates(arch, precision)),
    )
    return CheckedExport(plan, opened, text, draft, policy, platform)


def _target(asked: Asked, entry: ModelEntry, dry_run: bool) -> tuple[Checkpoint | None, Arch, bool]:
    """The target, None for a dry run of a repository on the hub; its architecture; and whether its weights are quantized in a way that is
    seen after the download only."""
    from .checkpoints.fetch import local_checkpoint, locate, open_checkpoint, planned_target

    say("weights: locating")
    opened = local_checkpoint(entry, asked.weights) if dry_run else open_checkpoint(locate(entry, asked.weights))
    if opened:
        return opened, opened.arch, False
    planned = planned_target(entry, asked.weights)
    unknown = planned.reader is not None and not asked.requantize
    if unknown:
        say("weights: quantized; which integers can be kept is seen when they are downloaded, the plan is for rounding all of them anew")
    return None, planned.arch, unknown


def _text(asked: Asked, entry: ModelEntry, opened: Checkpoint | None) -> TextSide:
    """The checkpoint's text side. Says what a user should know about it and about the weights."""
    from .text.read import planned_text, text_of

    text = text_of(opened, entry.chat_template) if opened else planned_text(entry, asked.weights)
    for note in opened.notes if opened else ():
        say(f"weights: {note}")
    for warning in text.all_warnings:
        say(f"warning: {warning}")
    return text


def _draft(asked: Asked, entry: ModelEntry, target: Checkpoint | None, arch: Arch, dry_run: bool) -> tuple[DraftCheckpoint | None, Named]:
    """The draft, opened if it and the target are here, with its name and architecture."""
    from .checkpoints.draft_checkpoint import open_draft
    from .checkpoints.fetch import locate_draft, planned_draft

    if asked.no_draft:
        return None, None
    directory = locate_draft(entry, asked.draft_weights, download=not dry_run)
    if directory and target:
        draft = open_draft(directory, target)
        return draft, (draft.path.name, draft.arch)
    return None, planned_draft(entry, asked.draft_weights, arch) if dry_run else None


def _export(asked: Asked, prepared: CheckedExport, force: bool, as_json: bool) -> None:
    """Write the directory, unless it is up to date."""
    from .build import ExportJob, export, is_current, source_of
    from .directory.bundled_tuning import bundled_digest

    plan, checkpoint, platform = prepared.plan, prepared.checkpoint, prepared.platform
    assert checkpoint is not None
    options: dict[str, object] = {"model": plan.model, "precision": plan.precision, "draft_precision": plan.draft_precision}
    options |= {"max_context": asked.max_context, "prefill_rows": asked.prefill_rows, "tree_sizes": list(plan.tree_sizes)}
    options |= {"requantize": asked.requantize, "longest_context": plan.longest_context, "lanes": plan.lanes}
    options |= {"rotated": plan.rotated, "calibrated": plan.calibrated}
    bundled = bundled_digest(prepared.draft.path, plan.precision) if prepared.draft else None
    options["policy"] = prepared.policy.digest if prepared.policy else bundled
    if platform:
        gpu = platform.gpu.name if platform.gpu else None
        options["tensorrt"] = [platform.flavour, platform.version, list(platform.capabilities), gpu]
    source = source_of(checkpoint, prepared.draft, options)
    if not force and is_current(plan, source):
        stored = plan.directory / "manifest.json"
        click.echo(stored.read_text(encoding="utf-8").rstrip() if as_json else f"{plan.directory} is up to date")
        return
    if plan.context < asked.max_context:
        say(f"the context is {plan.context} tokens instead of {asked.max_context}, the most that the model or its attention window has")
    if platform:
        say("\n".join(plan.lines()))
    elif plan.stored:
        say("\n".join(f"weights: {line}" for line in plan.stored))
    job = ExportJob(plan, checkpoint, prepared.draft, prepared.policy, source, _command_line(asked), prepared.text, platform, progress)
    manifest = export(job)
    click.echo(manifest.to_json().rstrip() if as_json else f"{plan.directory} is ready: {_closeness(manifest)}")


def _command_line(asked: Asked) -> str:
    """The call with the options that are not their defaults, for whoever has to make the engine again."""
    words = ["resps-export"]
    for parameter in command.params:
        value = getattr(asked, parameter.name or "", None)
        if value not in (None, False, parameter.default):
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return shlex.join([*words, "--force"])


def _closeness(manifest: Manifest) -> str:
    """What the check found, in a line."""
    check = manifest.check
    ran = "" if check.layers is None else f" (through {check.layers} of {manifest.shape.layers} layers, and a sample of all weights)"
    if manifest.precision in ("fp8", "int8", "int4"):
        same = f"{check.same_argmax:.0%} of {check.rows} rows prefer the same token as the unquantized model"
        return f"{same}, mean KL divergence {check.mean_kl:.2g} nats{ran}"
    return f"its logits differ from the checkpoint's by at most {check.max_abs_logit_diff:.1e}{ran}"


def main() -> None:
    """Entry point of resps-export."""
    sys.exit(run_command(command, "resps-export"))
