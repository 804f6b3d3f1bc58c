"""A policy's trained network: a multilayer perceptron in numpy for replay, and the same as an ONNX graph for service.

inputs   x[1,F] float32
outputs  logits[1,A] float32
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from ...graphs.builder import FLOAT, GraphBuilder

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""(weight [outputs, inputs], bias [outputs]) of each layer, float32."""

Activation = Literal["tanh", "relu"]
LEAST_DEVIATION = 0.01  # of the median one
RESOLUTION = 1e-3  # of float16, in which features are recorded


@dataclass(frozen=True)
class Mlp:
    """Linear layers with ``activation`` between them. Raises ValueError for layers that do not fit together or an unknown activation."""

    layers: Layers
    activation: Activation

    def __post_init__(self) -> None:
        if self.activation not in ("tanh", "relu"):
            raise ValueError(f"a network's activation is tanh or relu, not {self.activation!r}")
        outputs = self.inputs if self.layers else 0
        for weight, bias in self.layers:
            if weight.ndim != 2 or weight.shape[1] != outputs or bias.shape != weight.shape[:1]:
                raise ValueError(f"a layer of {weight.shape} with {bias.shape} biases does not fit {outputs} inputs")
            outputs = weight.shape[0]
        if not outputs:
            raise ValueError("a network needs a layer")

    @property
    def inputs(self) -> int:
        return int(self.layers[0][0].shape[1])

    @property
    def actions(self) -> int:
        return int(self.layers[-1][0].shape[0])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Inputs float32 [n, F] -> logits [n, A]."""
        value = np.asarray(x, np.float32)
        for layer, (weight, bias) in enumerate(self.layers):
            if layer:
                value = np.tanh(value) if self.activation == "tanh" else np.maximum(value, 0)
            value = value @ weight.T + bias
        return np.asarray(value)


@dataclass(frozen=True)
class Scaling:
    """Standardises each number of an input by itself: (x - ``mean``) / ``deviation``, both float32 [F]. One scale for all of them would not
    do: a target's high layers are much larger than its low ones, and a few numbers hardly change and are larger still."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray) -> Scaling:
        """The scaling that gives ``inputs`` [n, F] means of 0 and deviations of 1; numbers that hardly change are not blown up to that."""
        wide = np.asarray(inputs, np.float64)
        deviation = wide.std(0)
        mean = wide.mean(0)
        least = np.maximum(LEAST_DEVIATION * np.median(deviation), RESOLUTION * np.abs(mean))
        deviation = np.maximum(deviation, np.where(least > 0, least, 1.0))
        return cls(mean.astype(np.float32), deviation.astype(np.float32))

    def into(self, layers: Layers) -> Layers:
        """Layers that compute from an input as it is what ``layers`` compute from the scaled one."""
        weight, bias = (each.astype(np.float64) for each in layers[0])
        weight = weight / self.deviation
        return (weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32)), *layers[1:]


def mlp_graph(net: Mlp) -> onnx.ModelProto:
    """The network as an ONNX graph of standard operators, with its weights inside the file."""
    g = GraphBuilder("policy")
    value = g.input("x", FLOAT, [1, net.inputs])
    last = len(net.layers) - 1
    for layer, tensors in enumerate(net.layers):
        if layer:
            value = g.op("Tanh" if net.activation == "tanh" else "Relu", value)
        initializers = [
            g.initializer(numpy_helper.from_array(np.ascontiguousarray(tensor, np.float32), f"policy.{layer}.{part}"))
            for part, tensor in zip(("weight", "bias"), tensors, strict=True)
        ]
        value = g.op("Gemm", value, *initializers, transB=1, out="logits" if layer == last else None)
    g.output("logits", FLOAT, [1, net.actions])
    return g.model("resps-export")
