"""Runs the exported target piece by piece against the numpy reference, so that memory stays small whatever the model's size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime.decoding.tree import Tree
from runtime.manifest.schema import Check

from ..checkpoints.safetensors import Checkpoint
from ..errors import ParityError
from ..graphs.builder import BFLOAT16, FLOAT
from ..graphs.layers import NUMPY_TYPES, Precision
from ..graphs.target import stream
from .bf16_as_fp32 import float32_twin
from .reference import reference_logits

# Mean KL divergence to the float32 logits that still is rounding and not a wrong graph (a wrong one has 2 and more). SmolLM2-135M, which
# takes rounding badly, has 1e-5 in fp16, 1e-4 in bf16, 0.013 in int8, 0.10 in fp8 (three bits of mantissa) and 0.70 in int4.
MAX_KL = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2, "fp8": 0.5, "int8": 0.1, "int4": 1.0}
MAX_FP32_DIFF = 1e-3
PIECE_BYTES = 192 << 20
SLOTS = 64
PARENTS = (-1, 0, 1, 2, 2, 1, 5, 0)  # a chain with branches: checks mask and positions, not only causality


def check_target(file: Path, checkpoint: Checkpoint, precision: Precision) -> Check:
    """Compare on a small tree at the start of an empty cache. Raises ParityError when the difference is more than rounding."""
    tokens = np.random.default_rng(0).choice(checkpoint.arch.vocab, len(PARENTS), replace=False)
    tree = Tree.from_parents(tokens.tolist(), PARENTS)
    expected = reference_logits(checkpoint, tree.tokens, tree.depth, tree.mask).astype(np.float64)
    actual = _exported_logits(file, checkpoint, precision, tree).astype(np.float64)
    return compared(
        log_softmax(expected),
        log_softmax(actual) if np.isfinite(actual).all() else actual,
        precision,
        "target",
        np.abs(expected - actual).max(),
    )


def compared(expected: np.ndarray, actual: np.ndarray, precision: Precision, what: str, difference: float | None = None) -> Check:
    """Log-probabilities [n, V] of reference and export. ``difference``: the largest between their logits [default: between these].
    Raises ParityError when it is more than rounding."""
    if not np.isfinite(actual).all():
        option = "--draft-precision" if what == "draft" else "--precision"
        raise ParityError(f"the exported {what} gives logits that are not finite in {precision.name} — choose another {option}")
    check = Check(
        rows=len(expected),
        max_abs_logit_diff=float(np.abs(expected - actual).max() if difference is None else difference),
        mean_kl=float((np.exp(expected) * (expected - actual)).sum(-1).mean()),
        same_argmax=float((expected.argmax(-1) == actual.argmax(-1)).mean()),
    )
    if check.mean_kl > MAX_KL[precision.name] or (precision.name == "fp32" and check.max_abs_logit_diff > MAX_FP32_DIFF):
        raise ParityError(
            f"the exported {what} differs from the checkpoint: max |logit difference| {check.max_abs_logit_diff:.2g}, "
            f"mean KL {check.mean_kl:.2g} — please report the model and the precision"
        )
    return check


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _exported_logits(file: Path, checkpoint: Checkpoint, precision: Precision, tree: Tree) -> np.ndarray:
    """Logits [n, V] of the exported graph, a few layers in memory at a time."""
    arch = checkpoint.arch
    model = onnx.load(file, load_external_data=False)
    if precision.compute == BFLOAT16:
        model = float32_twin(model)
    slots = _shortened(model)
    compute = NUMPY_TYPES[_stream_type(model)]
    caches = {value.name: _shape(value, slots) for value in model.graph.input if value.name.startswith("past.")}
    zeros = {shape: np.zeros(shape, compute) for shape in set(caches.values())}
    feeds: dict[str, Any] = {
        "tokens": tree.tokens[None],
        "depth": tree.depth[None],
        "tree_mask": tree.mask,
        "past": np.zeros(1, np.int64),
        "slots": np.arange(SLOTS),
        "rows": np.arange(len(tree)),
        **{name: zeros[shape] for name, shape in caches.items()},
    }
    for source, result in _pieces(model, arch.layers):
        feeds[result] = _run(file.with_name(f"check.{result}.onnx"), _subgraph(model, source, result), feeds, compute)
        if source:
            del feeds[source]
    return np.asarray(feeds["logits"][0])


def _shortened(model: onnx.ModelProto) -> int:
    """Give caches of a fixed capacity fewer slots, but more than are read: they may be large. Returns their number."""
    slots = SLOTS
    for value in model.graph.input:
        if value.name.startswith("past."):
            dim = value.type.tensor_type.shape.dim[2]
            if dim.dim_value:
                dim.dim_value = slots = 2 * SLOTS
    return slots


def _shape(cache: onnx.ValueInfoProto, slots: int) -> tuple[int, ...]:
    return tuple(dim.dim_value or slots for dim in cache.type.tensor_type.shape.dim)


def _pieces(model: onnx.ModelProto, layers: int) -> Iterator[tuple[str | None, str]]:
    """(tensor that enters, tensor that leaves): embedding, groups of layers of about PIECE_BYTES, head."""
    sizes = (int(entry.value) for each in model.graph.initializer for entry in each.external_data if entry.key == "length")
    step = max(1, PIECE_BYTES // max(1, sum(sizes) // layers))
    yield None, stream(0)
    for first in range(0, layers, step):
        yield stream(first), stream(min(first + step, layers))
    yield stream(layers), "logits"


def _subgraph(model: onnx.ModelProto, source: str | None, result: str) -> onnx.ModelProto:
    """The part of the graph between two tensors, with the weights it uses still in the external file."""
    maker = {name: node for node in model.graph.node for name in node.output}
    wanted, seen, used = [result], {source}, set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in maker:
            used.update(maker[name].output)
            wanted.extend(maker[name].input)
    nodes = [node for node in model.graph.node if node.output[0] in used]
    inputs = [value for value in model.graph.input if value.name in seen]
    if source:
        inputs.append(onnx.helper.make_tensor_value_info(source, _stream_type(model), None))
    output = onnx.helper.make_tensor_value_info(result, FLOAT if result == "logits" else _stream_type(model), None)
    initializers = [each for each in model.graph.initializer if each.name in seen]
    graph = onnx.helper.make_graph(nodes, "piece", inputs, [output], initializers)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _stream_type(model: onnx.ModelProto) -> int:
    """The compute type, which is also the features'."""
    return int(next(value.type.tensor_type.elem_type for value in model.graph.output if value.name == "features"))


def activations(compute: np.dtype) -> tuple[str, str]:
    """The session option that says how quantized products treat activations: in eight bits where the runtime's own do, which is in graphs
    that compute in float32, and as they are where TensorRT runs the graph."""
    return "session.qdq_matmulnbits_accuracy_level", "4" if compute == np.float32 else "1"


def _run(file: Path, piece: onnx.ModelProto, feeds: dict[str, Any], compute: np.dtype[Any]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the cache is not shared here, which is intended
    options.add_session_config_entry(*activations(compute))
    onnx.save(piece, file)
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        return np.asarray(session.run(None, {name: feeds[name] for name in names})[0])
    finally:
        file.unlink()
