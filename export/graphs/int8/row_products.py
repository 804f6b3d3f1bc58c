"""Products for TensorRT with matrices of eight bits, int8 or float8, and one scale an output. Inputs may be rounded to eight bits as well.

TensorRT-RTX fuses a DequantizeLinear with one scale an output into the product. With scales of blocks it does so for int4, but dequantizes
a whole int8 matrix in every pass (docs/lab/tensorrt.md).

Where inputs are rounded, they have one scale a row. A row is divided by its largest number, as on the CPU, so one step serves all rows:
QuantizeLinear and DequantizeLinear with a constant. TensorRT makes a product of eight-bit numbers of them and of the weights'
DequantizeLinear, and puts the divisions into the kernels before and behind. A row's result does not depend on the other rows of a pass.

All is float32 around such a product: TensorRT stores the sums in the type of the DequantizeLinear, before it multiplies them by the scales.
Sums of eight-bit products overflow float16, and the product of two scales is too small for it (docs/lab/tensorrt.md).
"""

from __future__ import annotations

import numpy as np
from ml_dtypes import float8_e4m3fn

from ..builder import FLOAT, FLOAT8, FLOAT16, INT8, GraphBuilder

LARGEST = {INT8: 127.0, FLOAT8: 448.0}
"""Number that the largest input of a row becomes."""
_NUMPY = {INT8: np.dtype(np.int8), FLOAT8: np.dtype(float8_e4m3fn)}
_SMALLEST = 2.0**-24  # of float16, above zero: a row of zeros is not divided by zero


def weight_product(g: GraphBuilder, x: str, weight: str, scale: str, kind: int) -> str:
    """x [n, inputs] times a matrix with ``scale`` [outputs] of x's type. ``kind``: INT8 with ``weight`` [inputs, outputs], or FLOAT8 with
    [outputs, inputs]."""
    if kind == FLOAT8:
        return g.op("Gemm", x, g.op("DequantizeLinear", weight, scale, axis=0), transB=1)
    return g.op("MatMul", x, g.op("DequantizeLinear", weight, scale, axis=1))


def row_product(g: GraphBuilder, x: str, weight: str, scale: str, kind: int) -> str:
    """The same of float16 x and a float32 ``scale``, as float16; x is rounded to ``kind``, too."""
    step, zero = g.const(1 / LARGEST[kind], np.float32), g.const(0, _NUMPY[kind])
    wide = g.op("Cast", x, to=FLOAT)
    peak = g.op("Max", g.op("ReduceMax", g.op("Abs", wide), g.const([-1])), g.const(_SMALLEST, np.float32))
    rounded = g.op("DequantizeLinear", g.op("QuantizeLinear", g.op("Div", wide, peak), step, zero), step, zero)
    return g.op("Cast", g.op("Mul", weight_product(g, rounded, weight, scale, kind), peak), to=FLOAT16)
