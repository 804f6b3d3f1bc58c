"""Computes the disk space and memory of an export in advance. The graph writers run without weights and count bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from runtime.manifest.tuning_fit import PolicyLimits

from .checkpoints.arch import Arch
from .checkpoints.draft_arch import DraftArch
from .checkpoints.safetensors import Weights
from .draft_build import MAX_WIDTH, draft_writers, max_depth, max_width
from .errors import UnsupportedModel
from .graphs.int8.rounding import Rounding
from .graphs.kept_integers import keeps_integers, notes
from .graphs.precision import BACKENDS, NUMPY_TYPES, ONNXRUNTIME, TENSORRT, Precision
from .graphs.target import TargetWriter
from .graphs.tree_growth import MAX_DEPTH
from .graphs.weights import WeightCount
from .parity.target import PIECE_BYTES, is_small
from .rotation.target import RotatedTarget
from .tensorrt.profiles import WIDTHS, draft_lane_rows, lane_columns, target_lane_rows

TREE_SIZES = (1, 2, 4, 8, 16, 32, 64)
_BASE_MEMORY = 350 << 20  # interpreter, numpy, onnx, onnxruntime, and the streaming buffers
_ROOT_COPIES = 6  # of a matrix of moments in float64 that export.graphs.int8.feedback.inverse_root has at a time, rounded up
_SMALL_FILES = 8 << 20  # graphs, tokenizer, manifest
# Rounded up from builds with TensorRT-RTX 1.7.1 (tests/export/tensorrt). A plan contains kernel source text: so many bytes for each
# profile, and so many for each layer of a profile, twice as many if its weights are quantized: products that dequantize have much text.
# _SMALL_PLANS: the plans of all graphs without layers. Building takes _BUILD_MEMORY and copies of the weights.
_PROFILE_BYTES, _LAYER_BYTES = 4 << 20, 512 << 10
_SMALL_PLANS = 12 << 20
_BUILD_MEMORY, _BUILD_COPIES = 1000 << 20, 4
_NETWORK_PLANS = 2  # a policy network's plan, as a multiple of its ONNX file


@dataclass(frozen=True)
class Plan:
    """Settings of an export and its sizes in bytes.

    lanes: requests that share a pass with TensorRT; lane_columns: rows of one of them in a pass, 0 without lanes.
    weight_bytes, draft_bytes: target.data and draft.data. policy_bytes: networks of --policy. plan_bytes: TensorRT's plans, estimated.
    cache_bytes: of all lanes. memory: peak during the export. run_memory: weights and full caches at run time.
    longest_context: the largest context that --max-context can ask for.
    rotated: the residual stream is (export/rotation). calibrated: int8 is rounded with error feedback.
    stored: how a quantized checkpoint's values are stored, one line for each form.
    """

    directory: Path
    model: str
    backend: str
    precision: str
    context: int
    longest_context: int
    capacity: int
    tree_sizes: tuple[int, ...]
    prefill_rows: int
    lanes: int
    lane_columns: int
    draft: str | None
    draft_precision: str | None
    weight_bytes: int
    draft_bytes: int
    policy_bytes: int
    plan_bytes: int
    cache_bytes: int
    disk_bytes: int
    memory: int
    run_memory: int
    stored: tuple[str, ...] = ()
    requantize: bool = False
    rotated: bool = False
    calibrated: bool = False

    def lines(self) -> list[str]:
        """Human-readable summary, one line per entry."""
        lanes = [f"; target and draft are there twice: for one request, and for up to {self.lanes} in a pass"] if self.lanes > 1 else []
        built = (
            f"  *.plan, one a graph        about {_mib(self.plan_bytes)}{''.join(lanes)}",
            f"  on the GPU                 {_mib(self.weight_bytes + self.draft_bytes)} of weights, {_mib(self.cache_bytes)} of KV cache; "
            "scratch memory is known once the plans are built",
        )
        return [
            f"{self.directory}: {self.model} in {self.precision}, context {self.context} tokens"
            + (", the model's own limit" if self.context == self.longest_context else ""),
            f"  target.onnx, target.data   {_mib(self.weight_bytes)} of weights",
            *(f"  quantized weights          {line}" for line in self.stored),
            *(["  rounding to int8           " + self.rounding] if self.precision == "int8" else []),
            *([f"  draft.onnx, draft.data     {_mib(self.draft_bytes)} of {self.draft} in {self.draft_precision}"] if self.draft else []),
            *([f"  tuned-*.onnx               {_mib(self.policy_bytes)} of policy networks"] if self.policy_bytes else []),
            "  sample.onnx, tokenizer.json, manifest.json" + (", graphs of the draft" if self.draft else ""),
            *(built if self.backend == TENSORRT else ()),
            f"  tree sizes {', '.join(map(str, self.tree_sizes))} rows; prefill in chunks of {self.prefill_rows}",
            f"  disk {_mib(self.disk_bytes)}; peak memory about {_mib(self.memory)} to export, {_mib(self.run_memory)} to decode",
        ]

    @property
    def rounding(self) -> str:
        """How weights are rounded to int8, in words."""
        stream = "rotated" if self.rotated else "not rotated"
        return f"residual stream {stream}, {'with error feedback' if self.calibrated else 'to the nearest'}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def make_plan(
    directory: Path,
    model: str,
    arch: Arch,
    precision: Precision,
    max_context: int,
    prefill_rows: int,
    draft: PlannedDraft | None = None,
    policy_bytes: int = 0,
    *,
    backend: str = ONNXRUNTIME,
    tree_sizes: tuple[int, ...] = TREE_SIZES,
    lanes: int = 1,
    source: Weights | None = None,
    requantize: bool = False,
    rotated: bool = False,
    calibrated: bool = False,
) -> Plan:
    """Plan an export without reading any tensor. A sliding window limits the context, because full attention is exact only within it.

    source: the weights, if open; a quantized checkpoint's integers are stored unchanged unless ``requantize``. The last two: see Plan.
    """
    context = min(max_context, arch.longest_context)
    columns = lane_columns(prefill_rows, MAX_DEPTH) if lanes > 1 else 0
    capacity = -(-(context + max(*tree_sizes, columns)) // 64) * 64
    compute, static = NUMPY_TYPES[precision.compute].itemsize, backend == TENSORRT
    target = TargetWriter(arch, source, precision, capacity, WeightCount("target.data"), None, static, not requantize, Rounding(rotated))
    deque(target.build(), 0)
    weights = target.weights.size
    draft_weights, draft_cache = _draft_bytes(draft, target, context, backend, columns) if draft else (0, 0)
    cache = (target.cache_bytes + draft_cache) * lanes
    plans = _plan_bytes(target, draft, tree_sizes, lanes, weights + draft_weights) + _NETWORK_PLANS * policy_bytes if static else 0
    return Plan(
        directory=directory,
        model=model,
        backend=backend,
        precision=precision.name,
        context=context,
        longest_context=arch.longest_context,
        capacity=capacity,
        tree_sizes=tree_sizes,
        prefill_rows=prefill_rows,
        lanes=lanes,
        lane_columns=columns,
        draft=draft.name if draft else None,
        draft_precision=draft.precision if draft else None,
        weight_bytes=weights,
        draft_bytes=draft_weights,
        policy_bytes=policy_bytes,
        plan_bytes=plans,
        cache_bytes=cache,
        disk_bytes=weights + draft_weights + policy_bytes + plans + _SMALL_FILES,
        memory=_export_memory(arch, precision, weights, draft_weights, static, calibrated),
        run_memory=_BASE_MEMORY + weights * compute // NUMPY_TYPES[precision.stored].itemsize + cache + draft_weights,
        stored=_stored(source, arch, precision, static, requantize),
        requantize=requantize,
        rotated=rotated,
        calibrated=calibrated,
    )


def _draft_bytes(draft: PlannedDraft, target: TargetWriter, context: int, backend: str, columns: int) -> tuple[int, int]:
    """Bytes of the draft's weights, and of its cache for one lane. Raises UnsupportedModel if ``backend`` has no such drafts."""
    if draft.arch.one_pass and backend == TENSORRT:
        raise UnsupportedModel(
            f"{draft.name} is {draft.arch.family}, for which there are no TensorRT engines — export for the CPU, or with --no-draft"
        )
    count, kind = WeightCount("draft.data"), BACKENDS[backend][draft.precision]
    _, writer = draft_writers(draft.arch, None, kind, target.precision, context, count, target.embedding, target.static, columns)
    return count.size, writer.cache_bytes


def _plan_bytes(target: TargetWriter, draft: PlannedDraft | None, tree_sizes: tuple[int, ...], lanes: int, weights: int) -> int:
    """Estimated bytes of TensorRT's plans. ``weights``: bytes of all weights; plans for several lanes have them once more."""
    profiles, draft_profiles, copies = len(tree_sizes) + 1, len(WIDTHS) + 1, 1
    if lanes > 1:
        profiles, copies = profiles + len(target_lane_rows(tree_sizes, lanes)) + 1, 2
        draft_profiles += len(draft_lane_rows(MAX_WIDTH, MAX_DEPTH, lanes)) + 1
    texts = profiles * (_PROFILE_BYTES + target.arch.layers * _LAYER_BYTES * (2 if target.precision.matrix else 1))
    if draft:
        texts += draft_profiles * (_PROFILE_BYTES + draft.arch.layer.layers * _LAYER_BYTES)
        if not draft.arch.own_embedding:  # TensorRT copies the target's
            weights += target.arch.vocab * target.arch.hidden * NUMPY_TYPES[target.precision.compute].itemsize
    return _SMALL_PLANS + copies * weights + texts


def _stored(source: Weights | None, arch: Arch, precision: Precision, static: bool, requantize: bool) -> tuple[str, ...]:
    if isinstance(source, RotatedTarget):
        return _stored(source.plain, source.plain.arch, precision, static, requantize)
    return tuple(notes(source, arch, precision, static, requantize)) if source else ()


def _export_memory(arch: Arch, precision: Precision, weights: int, draft_weights: int, static: bool, calibrated: bool) -> int:
    """Peak bytes of the export. The draft's parity check loads it whole."""
    build = _BUILD_MEMORY + _BUILD_COPIES * weights if static else 0
    return max(_target_memory(arch, precision, weights, calibrated), _BASE_MEMORY + 3 * draft_weights, build)


def _target_memory(arch: Arch, precision: Precision, weights: int, calibrated: bool) -> int:
    """Peak bytes while the target is written and checked: twice the largest part that is in memory as a whole, and what error feedback
    makes of the moments of the widest inputs."""
    widest = max(outputs * inputs for _, outputs, inputs in arch.linears.values())
    moments = _ROOT_COPIES * 8 * max(inputs for _, _, inputs in arch.linears.values()) ** 2 if calibrated else 0
    return (
        _BASE_MEMORY
        + moments
        + 2 * max(PIECE_BYTES, arch.vocab * arch.hidden * 4, widest if precision.matrix else 0, weights // (arch.layers + 1))
    )


def rotates(arch: Arch, precision: Precision, backend: str, source: Weights | None, requantize: bool) -> bool:
    """Whether a rotated residual stream gains something: the inputs of int8 products can then be rounded to eight bits
    (export/graphs/int8). A checkpoint's integers that are kept belong to a stream that is not rotated."""
    keeps = source is not None and not requantize and keeps_integers(source, arch, precision, backend == TENSORRT)
    return precision.name == "int8" and not keeps


def calibrates(arch: Arch, precision: Precision) -> bool:
    """Whether int8 weights are rounded with error feedback unless asked otherwise. Of a large model that takes longer than the rest."""
    return precision.name == "int8" and is_small(arch)


def planned_limits(draft: DraftArch, tree_sizes: tuple[int, ...], backend: str, rotated: bool) -> PolicyLimits:
    """The limits that the exported engine will set for its policies."""
    largest = (max(tree_sizes), max_depth(draft), max_width(draft))
    return PolicyLimits(len(draft.captured) * draft.target_hidden, largest, tree_sizes if backend == TENSORRT else None, rotated)


@dataclass(frozen=True)
class PlannedDraft:
    """``precision``: the draft's own. It affects the acceptance rate, never the output."""

    name: str
    arch: DraftArch
    precision: str


def default_draft_precision(precision: str, backend: str = ONNXRUNTIME) -> str:
    """The draft's precision if none is given. CPU: weight-only int8 if the target computes in float32 (docs/lab/drafts.md), else the
    target's precision. GPU: bf16 for a bf16 target, else fp16."""
    if backend == TENSORRT:
        return "bf16" if precision == "bf16" else "fp16"
    return precision if precision in ("fp16", "bf16") else "int8"
