"""Checks an exported target against the numpy reference. The graph is run piece by piece, so that memory stays small for any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime.backends.cpu.processor import usable_cores
from runtime.decoding.tree import Tree
from runtime.manifest.schema import Check

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Checkpoint
from ..errors import CheckpointError, ParityError
from ..graphs.builder import BFLOAT16, FLOAT
from ..graphs.precision import NUMPY_TYPES, Precision
from ..graphs.target import stream
from .as_float32 import float32_copy
from .kept import layers_are_stored_alike
from .reference import reference_logits
from .stored import check_stored
from .wiring import check_wiring

Report = Callable[[int, int], None]
"""Called with how many parts of a check are done, and of how many."""

# Largest mean KL divergence to the float32 logits that can be rounding; a wrong graph has 2 and more. SmolLM2-135M is sensitive to
# rounding: it has 1e-5 in fp16, 1e-4 in bf16, 0.013 in int8, 0.10 in fp8 (three bits of mantissa) and 0.70 in int4.
MAX_KL = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2, "fp8": 0.5, "int8": 0.1, "int4": 1.0}
MAX_FP32_DIFF = 1e-3  # largest difference of a logit in fp32
FULL_CHECK = 1 << 30  # weights: a larger model is not run whole
PIECE_BYTES = 192 << 20  # of weights in one piece of the graph
SLOTS = 64
TREE_PARENTS = (-1, 0, 1, 2, 2, 1, 5, 0)  # parent of each node. The branches test mask and positions; a chain would test causality only.


def check_target(
    file: Path, checkpoint: Checkpoint, precision: Precision, report: Report = lambda done, total: None, feedback: bool = False
) -> Check:
    """Compare the graph in ``file`` with the reference, on a small tree with an empty cache. Of a small model all layers are run, else the
    first, the middle and the last one between embedding and head; then the stored weights and the wiring of all layers are checked as well.
    ``feedback``: whether int8 weights were rounded with error feedback. Raises ParityError if the difference is more than rounding."""
    arch = checkpoint.arch
    layers = sampled_layers(arch) if layers_are_stored_alike(checkpoint) else range(arch.layers)
    half, sampled = len(layers) + 1, len(layers) < arch.layers
    report(0, 2 * half)
    if sampled:
        check_stored(file, checkpoint, feedback)
        check_wiring(onnx.load(file, load_external_data=False), arch.layers)

    def reported() -> Iterator[int]:
        for done, layer in enumerate(layers, 1):
            report(done, 2 * half)
            yield layer

    tokens = np.random.default_rng(0).choice(arch.vocab, len(TREE_PARENTS), replace=False)
    tree = Tree.from_parents(tokens.tolist(), TREE_PARENTS)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = reference_logits(checkpoint, tree.tokens, tree.depth, tree.mask, reported()).astype(np.float64)
    if not np.isfinite(expected).all():
        raise CheckpointError(f"{checkpoint.path} itself gives logits that are not finite in float32 — its weights are damaged, get others")
    pieces: Report = lambda done, total: report(half + half * done // total, 2 * half)  # noqa: E731
    actual = exported_logits(file, checkpoint, precision, tree, layers, pieces).astype(np.float64)
    return compare(
        log_softmax(expected),
        log_softmax(actual) if np.isfinite(actual).all() else actual,
        precision,
        "target",
        np.abs(expected - actual).max(),
        len(layers) if sampled else None,
    )


def sampled_layers(arch: Arch) -> Sequence[int]:
    """The layers that the check runs."""
    return range(arch.layers) if is_small(arch) else sorted({0, arch.layers // 2, arch.layers - 1})


def is_small(arch: Arch) -> bool:
    """Whether the check runs the whole model."""
    return arch.layers * sum(outputs * inputs for _, outputs, inputs in arch.linears.values()) + arch.vocab * arch.hidden <= FULL_CHECK


def compare(
    expected: np.ndarray,
    actual: np.ndarray,
    precision: Precision,
    model: str,
    difference: float | None = None,
    layers: int | None = None,
    reference: str = "checkpoint",
    most: float = MAX_FP32_DIFF,
) -> Check:
    """Compare log-probabilities [n, V] of reference and export.

    ``model``: "target" or "draft", perhaps "with lanes", for messages, as is ``reference``. ``difference``: largest difference of a logit,
    if the caller has logits; by default that of the log-probabilities. ``layers``: how many were run, None for all. Raises ParityError if
    the difference is more than rounding. ``most``: largest difference of a logit in fp32 that can be rounding.
    """
    if not np.isfinite(actual).all():
        option = "--draft-precision" if model.startswith("draft") else "--precision"
        raise ParityError(f"the exported {model} gives logits that are not finite in {precision.name} — choose another {option}")
    check = Check(
        rows=len(expected),
        layers=layers,
        max_abs_logit_diff=float(np.abs(expected - actual).max() if difference is None else difference),
        mean_kl=float((np.exp(expected) * (expected - actual)).sum(-1).mean()),
        same_argmax=float((expected.argmax(-1) == actual.argmax(-1)).mean()),
    )
    if check.mean_kl > MAX_KL[precision.name] or (precision.name == "fp32" and check.max_abs_logit_diff > most):
        raise ParityError(
            f"the exported {model} differs from the {reference}: max |logit difference| {check.max_abs_logit_diff:.2g}, "
            f"mean KL {check.mean_kl:.2g} — please report the model and the precision"
        )
    return check


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def exported_logits(
    file: Path, checkpoint: Checkpoint, precision: Precision, tree: Tree, layers: Sequence[int], report: Report = lambda done, total: None
) -> np.ndarray:
    """Logits [n, V] of the exported graph for a tree of n nodes, with an empty cache. Only ``layers``, ascending, are run, one after the
    other."""
    return logits_by_pieces(file, precision, tree_inputs(tree, 0, SLOTS), SLOTS, checkpoint.arch.layers, layers, report)


def tree_inputs(tree: Tree, past: int, slots: int) -> dict[str, np.ndarray]:
    """The inputs of a graph for one lane, but the caches and ``rows``. ``slots``: of the caches."""
    return {
        "tokens": tree.tokens[None],
        "depth": tree.depth[None],
        "tree_mask": tree.mask,
        "past": np.array([past], np.int64),
        "slots": np.arange(slots),
    }


def logits_by_pieces(
    file: Path,
    precision: Precision,
    inputs: dict[str, np.ndarray],
    size: int,
    count: int,
    layers: Sequence[int],
    report: Report = lambda done, total: None,
) -> np.ndarray:
    """Logits [n, V] of all rows of a target graph, with a few layers in memory at a time and caches of zeros.

    ``size``: the caches' symbolic dimension. ``count``: the model's layers, of which only ``layers``, ascending, are run, one after the
    other."""
    model = onnx.load(file, load_external_data=False)
    if precision.compute == BFLOAT16:
        model = float32_copy(model)
    if "slots" in inputs:
        shorten_caches(model, 2 * len(inputs["slots"]))
    compute = NUMPY_TYPES[_stream_type(model)]
    caches = {value.name: _cache_shape(value, size) for value in model.graph.input if value.name.startswith("past.")}
    zeros = {shape: np.zeros(shape, compute) for shape in set(caches.values())}
    feeds: dict[str, Any] = {
        **inputs,
        "rows": np.arange(inputs["tokens"].shape[1]),
        **{name: zeros[shape] for name, shape in caches.items()},
    }
    hidden = np.empty(0)
    pieces = list(_piece_boundaries(model, count, layers))
    for done, (source, result) in enumerate(pieces, 1):
        used = {**feeds, source: hidden} if source else feeds
        hidden = _run(file.with_name(f"check.{result}.onnx"), _subgraph(model, source, result), used, compute)
        report(done, len(pieces))
    return np.asarray(hidden[0])


def shorten_caches(model: onnx.ModelProto, slots: int) -> None:
    """Caches of a fixed capacity, in graphs for TensorRT, may be large. They get so many slots, which must be more than are read."""
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past.", "present.")):
            dims = value.type.tensor_type.shape.dim
            if dims[2].dim_value:
                dims[2].dim_value = slots


def _cache_shape(cache: onnx.ValueInfoProto, size: int) -> tuple[int, ...]:
    return tuple(dim.dim_value or size for dim in cache.type.tensor_type.shape.dim)


def _piece_boundaries(model: onnx.ModelProto, layers: int, chosen: Sequence[int]) -> Iterator[tuple[str | None, str]]:
    """(tensor that enters, tensor that leaves) of each piece: the embedding, groups of layers of about PIECE_BYTES, the head."""
    sizes = (int(entry.value) for weight in model.graph.initializer for entry in weight.external_data if entry.key == "length")
    step = max(1, PIECE_BYTES // max(1, sum(sizes) // layers))
    yield None, stream(0)
    last = None
    for first in chosen:
        if last is None or first >= last:  # else it was in the group before
            last = first + 1
            while last in chosen and last < first + step:
                last += 1
            yield stream(first), stream(last)
    yield stream(layers), "logits"


def _subgraph(model: onnx.ModelProto, source: str | None, result: str) -> onnx.ModelProto:
    """The part of the graph between two tensors. Its weights stay in the external file."""
    producers = {name: node for node in model.graph.node for name in node.output}
    needed, seen, used = [result], {source}, set()
    while needed:
        name = needed.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in producers:
            used.update(producers[name].output)
            needed.extend(producers[name].input)
    nodes = [node for node in model.graph.node if node.output[0] in used]
    inputs = [value for value in model.graph.input if value.name in seen]
    if source:
        inputs.append(onnx.helper.make_tensor_value_info(source, _stream_type(model), None))
    output = onnx.helper.make_tensor_value_info(result, FLOAT if result == "logits" else _stream_type(model), None)
    initializers = [initializer for initializer in model.graph.initializer if initializer.name in seen]
    graph = onnx.helper.make_graph(nodes, "piece", inputs, [output], initializers)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _stream_type(model: onnx.ModelProto) -> int:
    """ONNX type of the residual stream. The output `features` is a part of it."""
    return int(next(value.type.tensor_type.elem_type for value in model.graph.output if value.name == "features"))


def accuracy_option(compute: np.dtype) -> tuple[str, str]:
    """The session option for quantized products: activations are rounded to eight bits in float32 graphs, as at run time. In graphs that
    TensorRT runs, all nodes are computed as they stand, in float32, without ONNX Runtime's own products of integers."""
    return ("session.qdq_matmulnbits_accuracy_level", "4") if compute == np.float32 else ("session.disable_quant_qdq", "1")


def _run(file: Path, piece: onnx.ModelProto, feeds: dict[str, Any], compute: np.dtype[Any]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 4  # ONNX Runtime warns that the cache is not shared, which is intended here
    options.add_session_config_entry(*accuracy_option(compute))
    onnx.save(piece, file)
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return np.asarray(session.run(None, {name: feeds[name] for name in names})[0])
    finally:
        file.unlink()
