"""The Re-SpS actor as a graph: which tree to grow, from what the target felt at the last accepted position (arXiv 2601.12212).

inputs   features[1,n,F] in the target's compute type · row[1] int64, the one that counts
outputs  logits[1,A] float32 · action[1] int64, the likeliest

F - 128 - 128 - A with tanh between, in float32, on the row scaled to a root mean square of one. Its weights are random until they are
trained, drawn as stable-baselines3 draws them: orthogonal, biases zero, the last layer a hundredth, so that all actions begin nearly equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from policy import TreeSpec
from runtime.manifest.graphs import File
from runtime.manifest.schema import Draft

from .builder import FLOAT, INT64, GraphBuilder
from .weights import WeightFile

DATA_FILE = "policy.data"
HIDDEN = 128
GAINS = (2**0.5, 2**0.5, 0.01)
DEPTHS, WIDTHS = (3, 5, 7), (4, 8)
EPSILON = 1e-6  # of the scaling, as in the targets' own norms
INLINE_BYTES = 1 << 20


def action_table(tree_sizes: Sequence[int], draft: Draft) -> tuple[tuple[int, int, int], ...]:
    """(nodes, depth, width) of every action: each profile's size with shallow and deep, narrow and wide trees that can have it."""
    wanted = {
        (nodes, min(depth, nodes - 1, draft.max_depth), min(width, draft.max_width))
        for nodes in tree_sizes
        for depth in DEPTHS
        for width in WIDTHS
        if nodes > 1
    }
    return tuple(sorted(each for each in wanted if each[0] <= TreeSpec(1, *each[1:]).capacity))


def write_policy(scratch: Path, features: int, kind: int, actions: int, seed: int = 0) -> tuple[onnx.ModelProto, dict[str, File]]:
    """Write policy.onnx, and policy.data where the weights are large. ``features``: numbers in a row, of ONNX type ``kind``.
    Returns the graph and what the weights' file is, if there is one."""
    sizes = (features, HIDDEN, HIDDEN, actions)
    random = np.random.default_rng(seed)
    weights = [_orthogonal(random, outputs, inputs) * gain for inputs, outputs, gain in zip(sizes, sizes[1:], GAINS, strict=False)]
    known: dict[str, File] = {}
    if sum(weight.nbytes for weight in weights) <= INLINE_BYTES:
        stored = [numpy_helper.from_array(weight.astype(np.float32), _weight(layer)) for layer, weight in enumerate(weights)]
    else:
        with WeightFile(scratch / DATA_FILE) as file:
            stored = [file.add(_weight(layer), FLOAT, weight.shape, [weight]) for layer, weight in enumerate(weights)]
        known[DATA_FILE] = File(file.sha256, file.size)
    model = _graph(features, kind, actions, stored)
    onnx.save(model, scratch / "policy.onnx")
    onnx.checker.check_model(str(scratch / "policy.onnx"))
    return model, known


def _weight(layer: int) -> str:
    return f"policy.{layer}.weight"


def _orthogonal(random: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """float32 [outputs, inputs] with orthonormal rows or columns, whichever are fewer, uniformly distributed."""
    tall = random.standard_normal((max(outputs, inputs), min(outputs, inputs)))
    basis, triangle = np.linalg.qr(tall)
    basis *= np.sign(np.diag(triangle))
    return np.ascontiguousarray(basis if outputs >= inputs else basis.T, np.float32)


def _graph(features: int, kind: int, actions: int, weights: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
    g = GraphBuilder("policy")
    rows, row = g.input("features", kind, [1, "n", features]), g.input("row", INT64, [1])
    state = g.op("Reshape", g.op("Gather", rows, row, axis=1), g.const([1, features]))
    if kind != FLOAT:
        state = g.op("Cast", state, to=FLOAT)
    mean_square = g.op("ReduceMean", g.op("Mul", state, state), g.const([1]))
    value = g.op("Div", state, g.op("Sqrt", g.op("Add", mean_square, g.const(EPSILON, np.float32))))
    last = len(weights) - 1
    for layer, weight in enumerate(weights):
        bias = numpy_helper.from_array(np.zeros(weight.dims[0], np.float32), f"policy.{layer}.bias")
        linear = g.op("Gemm", value, g.initializer(weight), g.initializer(bias), transB=1, out="logits" if layer == last else None)
        value = linear if layer == last else g.op("Tanh", linear)
    g.op("ArgMax", "logits", out="action", axis=-1, keepdims=0)
    g.output("logits", FLOAT, [1, actions])
    g.output("action", INT64, [1])
    return g.model("resps-export")
