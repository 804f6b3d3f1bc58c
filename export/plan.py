"""Computes the disk space and memory of an export in advance. The graph writers run without weights and count bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from runtime.manifest.tuning_fit import PolicyLimits

from .checkpoints.arch import Arch
from .checkpoints.draft_arch import DraftArch
from .checkpoints.safetensors import Weights
from .draft_build import draft_writers, max_width
from .graphs.kept_integers import notes
from .graphs.precision import BACKENDS, NUMPY_TYPES, ONNXRUNTIME, TENSORRT, Precision
from .graphs.target import TargetWriter
from .graphs.tree_growth import MAX_DEPTH
from .graphs.weights import WeightCount
from .parity.target import PIECE_BYTES
from .tensorrt.profiles import WIDTHS

TREE_SIZES = (1, 2, 4, 8, 16, 32, 64)
_BASE_MEMORY = 350 << 20  # interpreter, numpy, onnx, onnxruntime, and the streaming buffers
_SMALL_FILES = 8 << 20  # graphs, tokenizer, manifest
# Rounded up from builds with TensorRT-RTX 1.7.1 (tests/export/tensorrt): what a profile adds to a plan, and every layer in it, which is
# source text of kernels; the plans of graphs without layers; what building takes beside the weights, of which the builder holds copies.
_PROFILE_BYTES, _LAYER_BYTES = 4 << 20, 512 << 10
_SMALL_PLANS = 12 << 20
_BUILD_MEMORY, _BUILD_COPIES = 1000 << 20, 4
_NETWORK_PLANS = 2  # times a policy network's file


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes. ``weight_bytes`` and ``draft_bytes``: of target.data and draft.data; ``policy_bytes``: of the networks of --policy;
    ``memory``: peak of the export itself; ``run_memory``: weights and a full cache at run time; ``plan_bytes``: about what TensorRT's plans
    take. ``stored``: what becomes of the values of a quantized checkpoint, a line for each way in which matrices are stored."""

    directory: Path
    model: str
    backend: str
    precision: str
    context: int
    capacity: int
    tree_sizes: tuple[int, ...]
    prefill_rows: int
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

    def lines(self) -> list[str]:
        """Human-readable summary, one line per entry."""
        built = (
            f"  *.plan, one a graph        about {_mib(self.plan_bytes)}",
            f"  on the GPU                 {_mib(self.weight_bytes + self.draft_bytes)} of weights, {_mib(self.cache_bytes)} of KV cache; "
            "scratch memory is known once the plans are built",
        )
        return [
            f"{self.directory}: {self.model} in {self.precision}, context {self.context} tokens",
            f"  target.onnx, target.data   {_mib(self.weight_bytes)} of weights",
            *(f"  quantized weights          {line}" for line in self.stored),
            *([f"  draft.onnx, draft.data     {_mib(self.draft_bytes)} of {self.draft} in {self.draft_precision}"] if self.draft else []),
            *([f"  tuned-*.onnx               {_mib(self.policy_bytes)} of policy networks"] if self.policy_bytes else []),
            "  sample.onnx, tokenizer.json, manifest.json" + (", fuse.onnx, expand.onnx, tree.onnx" if self.draft else ""),
            *(built if self.backend == TENSORRT else ()),
            f"  tree sizes {', '.join(map(str, self.tree_sizes))} rows; prefill in chunks of {self.prefill_rows}",
            f"  disk {_mib(self.disk_bytes)}; peak memory about {_mib(self.memory)} to export, {_mib(self.run_memory)} to decode",
        ]


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
    source: Weights | None = None,
    requantize: bool = False,
) -> Plan:
    """No weights are read. A sliding window caps the context: within it, full attention is exact. ``source``: the weights, if they are at
    hand; those of a quantized checkpoint are kept as they are stored, unless ``requantize``."""
    context = min(max_context, arch.max_position, arch.window or arch.max_position)
    capacity = -(-(context + max(tree_sizes)) // 64) * 64
    compute, static = NUMPY_TYPES[precision.compute].itemsize, backend == TENSORRT
    count, draft_count = WeightCount("target.data"), WeightCount("draft.data")
    target = TargetWriter(arch, source, precision, capacity, count, static=static, keep_integers=not requantize)
    deque(target.build(), 0)
    weights, cache, head = count.size, target.cache_bytes, arch.vocab * arch.hidden * 4
    widest = max(outputs * inputs for _, outputs, inputs in arch.linears.values())
    memory = _BASE_MEMORY + 2 * max(PIECE_BYTES, head, widest if precision.matrix else 0, weights // (arch.layers + 1))
    texts = (len(tree_sizes) + 1) * (_PROFILE_BYTES + arch.layers * _LAYER_BYTES)
    if draft:
        kind, embedding = BACKENDS[backend][draft.precision], target.embedding
        _, writer = draft_writers(draft.arch, None, kind, precision, context, draft_count, embedding, static)
        cache += writer.cache_bytes
        texts += (len(WIDTHS) + 1) * (_PROFILE_BYTES + draft.arch.layer.layers * _LAYER_BYTES)
        memory = max(memory, _BASE_MEMORY + 3 * draft_count.size)  # its check loads it whole
    draft_weights, plans = draft_count.size, 0
    if static:  # where the draft shares the embedding, its plan has its own copy
        shared = 0 if draft is None or draft.arch.own_embedding else arch.vocab * arch.hidden * compute
        plans = weights + draft_weights + shared + texts + _SMALL_PLANS + _NETWORK_PLANS * policy_bytes
        memory = max(memory, _BUILD_MEMORY + _BUILD_COPIES * weights)
    return Plan(
        directory=directory,
        model=model,
        backend=backend,
        precision=precision.name,
        context=context,
        capacity=capacity,
        tree_sizes=tree_sizes,
        prefill_rows=prefill_rows,
        draft=draft.name if draft else None,
        draft_precision=draft.precision if draft else None,
        weight_bytes=weights,
        draft_bytes=draft_weights,
        policy_bytes=policy_bytes,
        plan_bytes=plans,
        cache_bytes=cache,
        disk_bytes=weights + draft_weights + policy_bytes + plans + _SMALL_FILES,
        memory=memory,
        run_memory=_BASE_MEMORY + weights * compute // NUMPY_TYPES[precision.stored].itemsize + cache + draft_weights,
        stored=tuple(notes(source, arch, precision, static, requantize)) if source else (),
        requantize=requantize,
    )


def planned_limits(draft: DraftArch, tree_sizes: tuple[int, ...], backend: str) -> PolicyLimits:
    """Limits that the exported engine will give to its policies."""
    largest = (max(tree_sizes), MAX_DEPTH, max_width(draft))
    return PolicyLimits(len(draft.captured) * draft.target_hidden, largest, tree_sizes if backend == TENSORRT else None)


@dataclass(frozen=True)
class PlannedDraft:
    """``precision``: of the draft. It affects the acceptance rate, never the output."""

    name: str
    arch: DraftArch
    precision: str


def default_draft_precision(precision: str, backend: str = ONNXRUNTIME) -> str:
    """On the CPU weight-only int8 beside targets that compute in float32 (docs/lab/drafts.md), else the target's own; on a GPU 16 bits."""
    if backend == TENSORRT:
        return "bf16" if precision == "bf16" else "fp16"
    return precision if precision in ("fp16", "bf16") else "int8"
