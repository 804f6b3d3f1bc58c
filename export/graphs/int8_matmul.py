"""Integer products for int8 weights on the CPU. A row's result does not depend on the other rows of a pass, and more rows cost little.

A row of activations is split into two rows of small integers, its coarse and its fine digits, which together keep 14 bits. The weights have
one scale per output. All digits go through one MatMulInteger, whose sums are exact in any order. ONNX Runtime runs it on the processor's
integer units (VNNI, AMX). Its blocked product (MatMulNBits) gains little from several rows there (docs/lab/int8.md).
"""

from __future__ import annotations

import numpy as np

from .builder import FLOAT, GraphBuilder

# The fast kernels multiply unsigned activations by signed weights. Processors without VNNI add two such products in 16 bits. Digits of
# seven bits, 1 to 127, cannot overflow there: 127 * 127 * 2 < 2**15.
_ZERO = 64  # the digit that stands for zero
_STEPS = 63  # on each side of it
FINE = 1 / (2 * _STEPS * _STEPS)
"""Step of the fine digits, as a share of the row's largest magnitude. Coarse rounding leaves an error of at most half a coarse step."""


def integer_product(g: GraphBuilder, x: str, weight: str, scale: str) -> str:
    """x [n, inputs] times int8 ``weight`` [inputs, outputs] times ``scale`` [outputs]. The scales must have been multiplied by FINE.

    A row of zeros is divided by zero, so its digits are arbitrary, but its result is multiplied by zero in the end.
    """
    peak = g.op("ReduceMax", g.op("Abs", x), g.const([-1]))
    share = g.op("Div", x, peak)  # then all rows share one step; a step per row takes longer to quantize
    step, zero = g.const(1 / _STEPS, np.float32), g.const(_ZERO, np.uint8)
    coarse = g.op("QuantizeLinear", share, step, zero)
    left = g.op("Sub", share, g.op("DequantizeLinear", coarse, step, zero))
    fine = g.op("QuantizeLinear", left, g.const(FINE, np.float32), zero)
    sums = g.op("MatMulInteger", g.op("Concat", coarse, fine, axis=0), weight, zero)
    high, low = g.ops("Split", g.op("Cast", sums, to=FLOAT), outs=(None, None), axis=0, num_outputs=2)
    joined = g.op("Add", g.op("Mul", high, g.const(2 * _STEPS, np.float32)), low)
    return g.op("Mul", g.op("Mul", joined, scale), peak)
