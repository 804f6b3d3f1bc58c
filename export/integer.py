"""Integer products for int8 weights on the CPU: a row's result is the same whatever other rows a pass has, and more rows cost little.

A row of activations becomes two rows of small integers, its coarse and its fine digits, so that 14 bits of it are left; the weights have
one scale an output. All digits go through one MatMulInteger, whose sums are exact in any order. ONNX Runtime runs it on the processor's
integer units (VNNI, AMX), where its blocked products (MatMulNBits) gain little from several rows: docs/benchmarks.md.
"""

from __future__ import annotations

import numpy as np

from .graph import FLOAT, GraphBuilder

# The fast kernels multiply unsigned activations by signed weights. Processors without VNNI add two such products in 16 bits: digits of
# seven bits, 1 to 127, cannot overflow there, 127 * 127 * 2 < 2**15.
_ZERO = 64  # the digit that stands for zero
_STEPS = 63  # on each side of it


def zero_points(g: GraphBuilder, tensor: str, axis: int) -> str:
    """The zero point of each row, [n], where n is the size of a tensor's axis."""
    return g.op("Expand", g.const(_ZERO, np.uint8), g.op("Shape", tensor, start=axis, end=axis + 1))


def integer_product(g: GraphBuilder, x: str, zeros: str, weight: str, scale: str) -> str:
    """x [n, inputs] times int8 ``weight`` [inputs, outputs] times ``scale`` [outputs]; ``zeros`` from `zero_points` for the n rows.

    A row of zeros has the scale 0: its digits are arbitrary bytes, and zero times their sums is zero.
    """
    peak = g.op("ReduceMax", g.op("Abs", x), g.const([-1]), keepdims=0)
    coarse_step = g.op("Mul", peak, g.const(1 / _STEPS, np.float32))
    fine_step = g.op("Mul", coarse_step, g.const(1 / (2 * _STEPS), np.float32))  # what rounding leaves is half a step on each side
    coarse = g.op("QuantizeLinear", x, coarse_step, zeros, axis=0)
    left = g.op("Sub", x, g.op("DequantizeLinear", coarse, coarse_step, zeros, axis=0))
    fine = g.op("QuantizeLinear", left, fine_step, zeros, axis=0)
    sums = g.op("MatMulInteger", g.op("Concat", coarse, fine, axis=0), weight, g.const(_ZERO, np.uint8))
    high, low = g.ops("Split", g.op("Cast", sums, to=FLOAT), outs=(None, None), axis=0, num_outputs=2)
    joined = g.op("Add", g.op("Mul", high, g.const(2 * _STEPS, np.float32)), low)
    return g.op("Mul", g.op("Mul", joined, g.op("Unsqueeze", fine_step, g.const([1]))), scale)
