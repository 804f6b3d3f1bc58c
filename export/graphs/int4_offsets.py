"""Four-bit weights with an offset a block, as one product with symmetric blocks of more inputs.

Every input of a block meets the block's offset, so what offsets add to a product is the sums of the blocks' inputs times the offsets. Those
sums stand behind the inputs themselves, twice, and there the weights are the offsets: as integers of eight bits, whose upper four meet the
sums the first time and whose lower four the second time. ONNX Runtime fuses all of it into one MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .builder import GraphBuilder
from .weights import BLOCK, rounded_scale

ALIGNED = 4 * BLOCK
"""ONNX Runtime's product takes four blocks at a time, then one by one, which is slower: 20 blocks take less time than 18."""
_LEAST, _MOST = 8 * 16 - 8, 7 * 16 + 7  # 8 bits, but as upper digits from -7 to 7 and lower ones from -8 to 7


def widened(inputs: int) -> int:
    """How many inputs a matrix of ``inputs``, a multiple of BLOCK, has with its offsets."""
    return _up(inputs + 2 * _up(inputs // BLOCK, BLOCK), ALIGNED)


def offset_columns(inputs: int) -> tuple[int, int]:
    """Where the upper and the lower digits of the first block's offset stand among the widened inputs; the other blocks' follow."""
    return inputs, inputs + _up(inputs // BLOCK, BLOCK)


def wide(g: GraphBuilder, x: str, inputs: int, zeros: Callable[[int], str]) -> str:
    """x [n, inputs] -> [n, widened(inputs)]: itself, the sums of its blocks, the same again, filled up with ``zeros(width)`` [n, width]."""
    sums = g.op("ReduceSum", g.op("Reshape", x, g.const([-1, inputs // BLOCK, BLOCK])), g.const([-1]), keepdims=0)
    between = _up(inputs // BLOCK, BLOCK) - inputs // BLOCK
    behind = widened(inputs) - inputs - 2 * (inputs // BLOCK) - between
    parts = [x, sums, *_filled(zeros, between), sums, *_filled(zeros, behind)]
    return g.op("Concat", *parts, axis=1)


def _filled(zeros: Callable[[int], str], width: int) -> list[str]:
    return [zeros(width)] if width else []


def quantize_widened(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [outputs, inputs], inputs a multiple of BLOCK -> what `widen` makes of its blocks."""
    return widen(*quantize_blocks_with_offset(weight))


def widen(values: np.ndarray, scales: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Four-bit blocks with offsets -> int8 values from -8 to 7 [outputs, widened(inputs)] and float32 scales [outputs, widened(inputs) /
    BLOCK] that float16 holds; of what `wide` makes of x, the product with value * scale is x times the weight, but for the offsets'
    rounding to eight bits.

    ``values``: int8, -8 to 7, [outputs, inputs]. ``scales``, ``offsets``: float32 [outputs, inputs / BLOCK]; float16 holds the scales.
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
    """Four bits with an offset a block, of float32 [outputs, inputs], inputs a multiple of BLOCK: the scheme of llama.cpp's Q4_1, of whose
    weights nothing is lost where a block has both signs.

    Returns int8 values from -8 to 7 [outputs, inputs], float32 scales, which float16 holds, and float32 offsets [outputs, inputs / BLOCK];
    value * scale + offset approximates the weight. Offsets are small, because they are rounded later, and so are the sums that they meet:
    seven scales at most, since zero is among a block's sixteen levels or between two, and of the two that a block can have, counted from
    below or, with a negative scale, from above, the smaller.
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
