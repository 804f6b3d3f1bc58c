"""Four-bit weights with an offset per block, computed as a single product with symmetric blocks and additional inputs.

All inputs of a block are multiplied by the same offset, so the offsets contribute (sum of the block's inputs) * offset. The block sums are
therefore appended to the inputs, and the offsets to the weights. An offset is quantized to eight bits. The sums are appended twice: the
first copy is multiplied by the offsets' upper four bits, the second by the lower four. ONNX Runtime fuses the whole product into one
MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .builder import GraphBuilder
from .weights import BLOCK, rounded_scale

ALIGNED = 4 * BLOCK
"""Inputs are padded to a multiple of four blocks: ONNX Runtime's kernel processes four blocks at a time and the remaining ones singly,
which is slower (20 blocks take less time than 18)."""
_LEAST, _MOST = 8 * 16 - 8, 7 * 16 + 7  # 8-bit values made of an upper digit from -7 to 7 and a lower one from -8 to 7


def widened(inputs: int) -> int:
    """Number of inputs of a widened matrix, offsets and padding included. ``inputs``: a multiple of BLOCK."""
    return _up(inputs + 2 * _up(inputs // BLOCK, BLOCK), ALIGNED)


def offset_columns(inputs: int) -> tuple[int, int]:
    """Where the upper and the lower digits of the first block's offset stand among the widened inputs; the other blocks' follow."""
    return inputs, inputs + _up(inputs // BLOCK, BLOCK)


def wide(g: GraphBuilder, x: str, inputs: int, zeros: Callable[[int], str]) -> str:
    """x [n, inputs] -> [n, widened(inputs)]: x, its block sums, the block sums again, and padding. ``zeros(width)``: zeros [n, width]."""
    sums = g.op("ReduceSum", g.op("Reshape", x, g.const([-1, inputs // BLOCK, BLOCK])), g.const([-1]), keepdims=0)
    between = _up(inputs // BLOCK, BLOCK) - inputs // BLOCK
    behind = widened(inputs) - inputs - 2 * (inputs // BLOCK) - between
    parts = [x, sums, *_filled(zeros, between), sums, *_filled(zeros, behind)]
    return g.op("Concat", *parts, axis=1)


def _filled(zeros: Callable[[int], str], width: int) -> list[str]:
    return [zeros(width)] if width else []


def quantize_widened(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize float32 [outputs, inputs], inputs a multiple of BLOCK, offsets included; returns what `widen` returns."""
    return widen(*quantize_blocks_with_offset(weight))


def widen(values: np.ndarray, scales: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Append the offsets of four-bit blocks to the blocks, as further inputs.

    ``values``: int8, -8 to 7, [outputs, inputs]. ``scales``, ``offsets``: float32 [outputs, inputs / BLOCK]; float16 holds the scales.
    Returns int8 values from -8 to 7 [outputs, widened(inputs)] and float32 scales [outputs, widened(inputs) / BLOCK] that float16 holds.
    The product of wide(x) and value * scale is x times the weight, except that offsets are rounded to eight bits.
    """
    outputs, inputs = values.shape
    sums = _up(inputs // BLOCK, BLOCK)
    groups = np.pad(offsets, ((0, 0), (0, sums - inputs // BLOCK))).reshape(outputs, -1, BLOCK)
    step = rounded_scale(np.abs(groups).max(-1, keepdims=True) / np.float32(_MOST), np.float16)
    digits = np.clip(np.rint(groups / np.where(step == 0, 1.0, step)), -_LEAST, _MOST).astype(np.int8)
    upper = (digits + 8) >> 4
    rest = np.zeros((outputs, widened(inputs) - inputs - 2 * sums), np.int8)
    wide_values = np.concatenate([values, upper.reshape(outputs, -1), (digits - 16 * upper).reshape(outputs, -1), rest], axis=1)
    return wide_values, np.concatenate([scales, 16 * step[..., 0], step[..., 0], rest[:, ::BLOCK].astype(np.float32)], axis=1)


def quantize_blocks_with_offset(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize float32 [outputs, inputs], inputs a multiple of BLOCK, to four bits with an offset per block.

    The scheme is that of llama.cpp's Q4_1; weights stored that way are reproduced exactly if the block has both signs.

    Returns int8 values from -8 to 7 [outputs, inputs], float32 scales, which float16 holds, and float32 offsets [outputs, inputs / BLOCK];
    value * scale + offset approximates the weight. Offsets should be small, because they and the sums that they are multiplied by are
    rounded later. A block has two possible offsets: levels counted from its minimum, or, with a negative scale, from its maximum. The
    smaller one is taken. It is at most seven scales, because zero lies within the block's range.
    """
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    low, high = np.minimum(_over_blocks(np.minimum, weight), 0.0), np.maximum(_over_blocks(np.maximum, weight), 0.0)
    step = rounded_scale((high - low) / np.float32(15.0), np.float16)
    above = low + high > 0
    scale, offset = np.where(above, -step, step), low + np.where(above, np.float32(7.0), np.float32(8.0)) * step
    values = blocks - offset
    values /= np.where(step == 0, np.float32(1.0), scale)
    np.clip(np.rint(values, out=values), -8.0, 7.0, out=values)
    return values.astype(np.int8).reshape(weight.shape), scale[..., 0], offset[..., 0]


def _over_blocks(reduce: np.ufunc, weight: np.ndarray) -> np.ndarray:
    """``reduce`` over each block of float32 [outputs, inputs] -> [outputs, inputs / BLOCK, 1]. Faster than numpy's reduction over an axis
    as short as a block."""
    return np.asarray(reduce.reduceat(weight.reshape(-1), np.arange(0, weight.size, BLOCK))).reshape(len(weight), -1, 1)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
