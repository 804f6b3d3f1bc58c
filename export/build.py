"""Exports a checkpoint to an engine directory: writes graphs and tokenizer, checks the graphs, and writes the manifest last."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from runtime.backends.cpu.processor import usable_memory
from runtime.backends.cpu.sums import adds_in_order, adds_pages_in_order, adds_pairs_exactly
from runtime.errors import EngineDirError
from runtime.manifest.graphs import FILE_NAME, File, Graph, Tensor, sha256_of
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import SCHEMA, Check, Draft, Limits, Manifest, Source, TargetShape
from runtime.manifest.tuning import Tuning
from runtime.manifest.tuning_fit import policy_limits
from runtime.text.tokenizer import Tokenizer

from .calibration import InputMoments, own_texts
from .checkpoints.draft_checkpoint import DraftCheckpoint
from .checkpoints.safetensors import Checkpoint
from .directory.bundled_tuning import bundled_tuning
from .directory.found_tuning import FoundTuning, adopt
from .directory.install import move_into_place
from .directory.kept_tuning import keep
from .directory.owned import expect_replaceable
from .directory.scratch import scratch_directory
from .draft_build import write_draft
from .errors import ExportError, ParityError
from .graph_files import graph_file, save_graphs
from .graphs.fused import fused_target
from .graphs.int8.rounding import Rounding
from .graphs.lanes.writers import TARGET_LANES, target_lanes
from .graphs.precision import BACKENDS, ONNXRUNTIME, TENSORRT, Precision
from .graphs.sample import build_sample
from .graphs.target import TargetWriter, is_ordered
from .graphs.weights import WeightFile
from .parity.lanes import check_target_lanes
from .parity.target import check_target
from .plan import Plan
from .tensorrt.builder import TIMING_CACHE, Progress
from .tensorrt.gpu import Platform
from .tensorrt.plans import build_plans, describe
from .text.side import TextSide

_log = logging.getLogger("resps")
SPAN_STEP = {ONNXRUNTIME: 64, TENSORRT: 256}  # coarser for TensorRT, because the runtime records a CUDA graph for every span
FUSED_FILE = "target.cpu.onnx"


def is_current(plan: Plan, source: Source) -> bool:
    """Whether the directory already holds exactly this export and all its files are intact."""
    try:
        return load_manifest(plan.directory, verify=True).source == source
    except EngineDirError:
        return False


_NOT_THE_EXPORTER = ("doctor", "training", "tuning")  # separate commands; an exported engine does not depend on them


def source_of(checkpoint: Checkpoint, draft: DraftCheckpoint | None, options: Mapping[str, Any]) -> Source:
    """Fingerprint of inputs and options. An existing directory with the same fingerprint is up to date."""
    found = [*checkpoint.fingerprint(), *(draft.fingerprint() if draft else [])]
    files = tuple((name, size, modified) for name, size, modified, _ in found)
    places = hashlib.sha256("".join(place for *_, place in found).encode()).hexdigest()[:16]
    return Source(str(checkpoint.path.name), files, {**options, "places": places, "exporter": exporter_hash()})


def exporter_hash(root: Path = Path(__file__).parent) -> str:
    """Hash of the exporter's source files and prompts. An engine made with others is not up to date, even if the version is the same."""
    digest = hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.glob("*.txt")]):
        if file.relative_to(root).parts[0] not in _NOT_THE_EXPORTER:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ExportJob:
    """One export. ``policy``: the tuning given with --policy. ``rebuild``: the command that repeats the export, for error messages.
    ``text``: the checkpoint's tokenizer and chat templates. ``platform``: what TensorRT builds with and for, None for ONNX Runtime."""

    plan: Plan
    checkpoint: Checkpoint
    draft: DraftCheckpoint | None
    policy: FoundTuning | None
    source: Source
    rebuild: str
    text: TextSide
    platform: Platform | None
    progress: Progress


@dataclass
class _Written:
    """What is in the scratch directory so far. ``known``: files whose hash was computed while they were written."""

    models: dict[str, onnx.ModelProto]
    known: dict[str, File]
    check: Check
    draft: Draft | None = None


def export(job: ExportJob) -> Manifest:
    """Write the engine to a scratch directory, and move it to ``plan.directory`` when it is complete and checked.

    Raises ExportError. After any failure ``plan.directory`` is as it was before.
    """
    plan = job.plan
    expect_replaceable(plan.directory)
    parent = plan.directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < plan.disk_bytes:
        raise ExportError(
            f"{parent} has {free >> 20} MiB free, the export needs {plan.disk_bytes >> 20} — free some space or use another --out"
        )
    memory = usable_memory()
    if memory is not None and plan.memory > memory:  # the system would kill the process without a word
        _log.warning("the export needs about %d MiB of memory, this process may use %d — give it more", plan.memory >> 20, memory >> 20)
    with scratch_directory(plan.directory) as scratch:
        manifest = _write(scratch, job)
        move_into_place(scratch, plan.directory)
    return manifest


def _write(scratch: Path, job: ExportJob) -> Manifest:
    plan, arch = job.plan, job.checkpoint.arch
    captured = job.draft.arch.captured if job.draft else arch.captured
    tokens = job.text.write(scratch)
    rounding = _rounding(job, Tokenizer(scratch, tokens))
    written = _write_graphs(scratch, job, captured, rounding)
    graphs = {name: _described(graph_file(name), model) for name, model in written.models.items()}
    if (scratch / FUSED_FILE).is_file():
        graphs["target"] = replace(graphs["target"], fused=FUSED_FILE)
    limits = Limits(plan.context, plan.capacity, max(plan.tree_sizes), plan.prefill_rows, SPAN_STEP[plan.backend])
    # Taken from the module: the package has another name when its GPU build is installed.
    versions = {"resps": version("resps"), "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    if job.platform:
        timings = plan.directory / TIMING_CACHE
        graphs, plans = build_plans(
            scratch, graphs, limits, plan.tree_sizes, written.draft, plan.lanes, job.platform, timings, job.progress
        )
        written.known |= plans
        versions[job.platform.flavour] = job.platform.version
    files = {file.name: written.known.get(file.name) or File(sha256_of(file), file.stat().st_size) for file in sorted(scratch.iterdir())}
    manifest = Manifest(
        schema=SCHEMA,
        model=plan.model,
        precision=plan.precision,
        backend=plan.backend,
        shape=TargetShape(arch.layers, arch.kv_heads, arch.head_dim, arch.hidden, arch.vocab, captured),
        limits=limits,
        tree_sizes=plan.tree_sizes,
        tokens=tokens,
        draft=written.draft,
        tuning=None,
        tensorrt=describe(job.platform, plan.lanes) if job.platform else None,
        graphs=graphs,
        files=files,
        check=written.check,
        built_with=versions,
        source=job.source,
        rebuild=job.rebuild,
        rotated=plan.rotated,
        exact_pairs=plan.rotated and plan.backend == ONNXRUNTIME and not rounding.unsigned,
    )
    manifest = replace(manifest, tuning=_tuning(scratch, job, manifest))
    (scratch / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _tuning(scratch: Path, job: ExportJob, manifest: Manifest) -> Tuning | None:
    """The tuning given with --policy, else the one that resps-tune made for this directory, else the one bundled with the draft."""
    found = job.policy
    if found is None:
        if kept := keep(job.plan.directory, manifest.engine_id, scratch):
            return kept
        if job.draft and (limits := policy_limits(manifest)):
            found = bundled_tuning(job.draft.path, job.draft.sha256, job.plan.precision, limits)
    return adopt(found, manifest.engine_id, scratch, job.platform, job.progress) if found else None


def _rounding(job: ExportJob, tokenizer: Tokenizer) -> Rounding:
    """How the target's matrices are rounded to int8 on this processor."""
    calibration = InputMoments(job.checkpoint, own_texts(tokenizer, job.checkpoint.arch)) if job.plan.calibrated else None
    unsigned = job.plan.rotated and job.plan.backend == ONNXRUNTIME and not adds_pairs_exactly()
    return Rounding(job.plan.rotated, unsigned, calibration)


def _write_graphs(scratch: Path, job: ExportJob, captured: tuple[int, ...], rounding: Rounding) -> _Written:
    """Write and check all graphs with their weights. Raises ExportError."""
    plan, arch, progress = job.plan, job.checkpoint.arch, job.progress
    precision = BACKENDS[plan.backend][plan.precision]
    if plan.backend == ONNXRUNTIME and is_ordered(precision) and not (adds_in_order() and adds_pages_in_order(arch.head_dim)):
        raise ExportError(
            "ONNX Runtime's matrix products on this processor do not sum in a fixed order, so int8 and int4 answers could depend on the "
            "draft — use --precision fp32 or bf16"
        )
    with WeightFile(scratch / "target.data") as weights:
        static, keep = plan.backend == TENSORRT, not plan.requantize
        writer = TargetWriter(arch, job.checkpoint, precision, plan.capacity, weights, captured, static, keep, rounding)
        for done in writer.build():
            progress("target", done, arch.layers + 1)
    progress("target", arch.layers + 1, arch.layers + 1)
    models = {"target": writer.model(), "sample": build_sample(arch.vocab)}
    if lanes := target_lanes(writer) if plan.backend == ONNXRUNTIME or plan.lanes > 1 else None:
        models[TARGET_LANES] = lanes
    save_graphs(scratch, models)
    fused = fused_target(writer)
    if fused:
        onnx.save(fused, scratch / FUSED_FILE)
    check = check_target(scratch / "target.onnx", job.checkpoint, precision, partial(progress, "check"), plan.calibrated)
    if lanes:
        check_target_lanes(scratch / "target.onnx", scratch / graph_file(TARGET_LANES), job.checkpoint, precision, plan.capacity, static)
    if fused and not _fits(scratch / FUSED_FILE, job.checkpoint, precision):
        (scratch / FUSED_FILE).unlink()
    written = _Written(models, {"target.data": File(weights.sha256, weights.size)}, check)
    if job.draft and plan.draft_precision:
        progress("draft", 0, 1)
        drafts, written.known["draft.data"], written.draft = write_draft(
            scratch, job.draft, plan.draft_precision, precision, plan.context, writer.embedding, plan.backend, plan.lane_columns
        )
        models |= drafts
        progress("draft", 1, 1)
    return written


def _fits(fused: Path, checkpoint: Checkpoint, precision: Precision) -> bool:
    """Whether ONNX Runtime's own operators compute this model. They do not for every head size, for example. The standard graph does
    without them."""
    try:
        check_target(fused, checkpoint, precision)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        if not isinstance(error, ParityError) and not type(error).__module__.startswith("onnxruntime."):
            raise
        _log.warning("%s is left out, which makes a pass a little slower: %s", fused.name, error)
        return False
    return True


def _described(file: str, model: onnx.ModelProto) -> Graph:
    """The manifest's entry of a graph: names, types and shapes of its inputs and outputs."""

    def tensors(values: Any) -> dict[str, Tensor]:
        return {
            value.name: Tensor(
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        }

    return Graph(file, None, (), tensors(model.graph.input), tensors(model.graph.output))
