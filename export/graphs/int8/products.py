"""Integer products for int8 weights on the CPU. A row's result does not depend on the other rows of a pass, and more rows cost little.

A row of activations is divided by its largest number and rounded to small integers, its digits. All digits go through MatMulInteger, whose
sums are exact in any order. ONNX Runtime runs it on the processor's integer units (VNNI, AMX). Its blocked product (MatMulNBits) gains
little from several rows there (docs/lab/int8.md). The weights have one scale per output.

Fast kernels multiply unsigned activations by signed weights. A processor without VNNI adds two such products in 16 bits, so there are two
forms that are exact:

* two digits of seven bits, a coarse and a fine one (127 * 127 * 2 < 2**15). They keep 14 bits, on any processor;
* one digit of eight bits. It needs either a processor that adds in 32 bits, or unsigned weights, for which ONNX Runtime has a kernel that
  adds in 32 bits everywhere (docs/lab/int8.md, "One digit").
"""

from __future__ import annotations

import numpy as np

from ..builder import FLOAT, UINT8, GraphBuilder

_ZERO = 64  # the digit of seven bits that stands for zero
_STEPS = 63  # on each side of it
_FINE = 1 / (2 * _STEPS * _STEPS)
"""Step of the fine digits, as a share of the row's largest magnitude. Coarse rounding leaves an error of at most half a coarse step."""
_WIDE_ZERO, _WIDE_STEPS = 128, 127  # the same for a digit of eight bits


def integer_product(g: GraphBuilder, x: str, weight: str, scale: str, digits: int = 2) -> str:
    """x [n, inputs] times int8 ``weight`` [inputs, outputs] times ``scale`` [outputs]. With one digit the weights may be uint8, with 128
    added.

    A row of zeros is divided by zero, so its digits are arbitrary, but its result is multiplied by zero in the end.
    """
    peak = g.op("ReduceMax", g.op("Abs", x), g.const([-1]))
    share = g.op("Div", x, peak)  # then all rows share one step; a step per row takes longer to quantize
    if digits == 1:
        zero, step = g.const(_WIDE_ZERO, np.uint8), 1 / _WIDE_STEPS
        digit = g.op("QuantizeLinear", share, g.const(step, np.float32), zero)
        of_weights = [zero] if g.tensor(weight).data_type == UINT8 else []  # their zero
        joined = g.op("Cast", g.op("MatMulInteger", digit, weight, zero, *of_weights), to=FLOAT)
    else:
        coarse_step, zero, step = g.const(1 / _STEPS, np.float32), g.const(_ZERO, np.uint8), _FINE
        coarse = g.op("QuantizeLinear", share, coarse_step, zero)
        left = g.op("Sub", share, g.op("DequantizeLinear", coarse, coarse_step, zero))
        fine = g.op("QuantizeLinear", left, g.const(step, np.float32), zero)
        sums = g.op("MatMulInteger", g.op("Concat", coarse, fine, axis=0), weight, zero)
        high, low = g.ops("Split", g.op("Cast", sums, to=FLOAT), outs=(None, None), axis=0, num_outputs=2)
        joined = g.op("Add", g.op("Mul", high, g.const(2 * _STEPS, np.float32)), low)
    folded = g.op("Mul", scale, g.const(step, np.float32))  # ONNX Runtime computes it once, while loading
    return g.op("Mul", g.op("Mul", joined, folded), peak)
