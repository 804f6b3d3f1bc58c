"""Quantizes and packs matrices as the published formats define it, in plain loops that share nothing with the readers.

Each packer returns the tensors of one module, by their names behind the module's, and the float32 weight [outputs, inputs] that the
format's definition gives them.
"""

from __future__ import annotations

import numpy as np
from ml_dtypes import float8_e4m3fn

Packed = tuple[dict[str, np.ndarray], np.ndarray]
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


def words(columns: np.ndarray, bits: int) -> np.ndarray:
    """Integers [n, m] -> int32 [n, ceil(m bits / 32)], the first of a word in its lowest bits."""
    each = 32 // bits
    result = np.zeros((columns.shape[0], -(-columns.shape[1] // each)), np.uint32)
    for place in range(columns.shape[1]):
        result[:, place // each] |= columns[:, place].astype(np.uint32) << np.uint32(bits * (place % each))
    return result.view(np.int32)


def quantized(
    weight: np.ndarray, bits: int, g_idx: np.ndarray, zero_points: bool, scale_type: np.dtype | type = np.float16
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values from 0 [outputs, inputs], scales and zero points [outputs, groups], and the weight (q - z) * s in float32."""
    top, groups = 2**bits - 1, int(g_idx.max()) + 1
    scales, zeros = np.zeros((len(weight), groups), np.float32), np.zeros((len(weight), groups), np.int64)
    for group in range(groups):
        part = weight[:, g_idx == group].astype(np.float64)
        if zero_points:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scales[:, group] = np.maximum((high - low) / top, 1e-6)
        else:
            scales[:, group] = np.maximum(np.abs(part).max(1) / (top // 2), 1e-6)
    scales = scales.astype(scale_type).astype(np.float32)
    for group in range(groups):
        low = np.minimum(weight[:, g_idx == group].min(1), 0)
        zeros[:, group] = np.clip(np.rint(-low / scales[:, group]), 0, top) if zero_points else 2 ** (bits - 1)
    values = np.clip(np.rint(weight / scales[:, g_idx]) + zeros[:, g_idx], 0, top).astype(np.int64)
    dense = ((values - zeros[:, g_idx]).astype(np.float64) * scales[:, g_idx]).astype(np.float32)
    return values, scales, zeros, dense


def groups_of(inputs: int, size: int) -> np.ndarray:
    """The group of each input, in their own order."""
    return np.arange(inputs) // (inputs if size == -1 else size)


def gptq(weight: np.ndarray, bits: int, g_idx: np.ndarray, *, zero_points: bool = True, v2: bool = False) -> Packed:
    values, scales, zeros, dense = quantized(weight, bits, g_idx, zero_points)
    if not v2 and zero_points:  # the format has no zero point of 0
        zeros = np.maximum(zeros, 1)
        dense = ((values - zeros[:, g_idx]).astype(np.float64) * scales[:, g_idx]).astype(np.float32)
    stored = zeros if v2 else zeros - 1
    tensors = {
        "qweight": np.ascontiguousarray(words(values, bits).T),
        "qzeros": words(stored.T, bits),
        "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
        "g_idx": g_idx.astype(np.int32),
    }
    return tensors, dense


def awq(weight: np.ndarray, group: int, *, zero_points: bool = True) -> Packed:
    values, scales, zeros, dense = quantized(weight, 4, groups_of(weight.shape[1], group), zero_points)
    return {"qweight": _awq_words(values.T), "qzeros": _awq_words(zeros.T), "scales": scales.T.astype(np.float16)}, dense


def _awq_words(columns: np.ndarray) -> np.ndarray:
    result = np.zeros((columns.shape[0], columns.shape[1] // 8), np.uint32)
    for word in range(result.shape[1]):
        for place, column in enumerate(AWQ_PLACES):
            result[:, word] |= columns[:, 8 * word + column].astype(np.uint32) << np.uint32(4 * place)
    return result.view(np.int32)


def pack_quantized(
    weight: np.ndarray, bits: int, g_idx: np.ndarray, *, zero_points: bool, scale_type: np.dtype | type = np.float16, ordered: bool = False
) -> Packed:
    """compressed-tensors' weight_packed. ``ordered``: with weight_g_idx."""
    values, scales, zeros, dense = quantized(weight, bits, g_idx, zero_points, scale_type)
    tensors = {
        "weight_packed": words(values, bits),
        "weight_scale": scales.astype(scale_type),
        "weight_shape": np.array(weight.shape, np.int64),
    }
    if zero_points:
        tensors["weight_zero_point"] = np.ascontiguousarray(words(zeros.T, bits).T)
    if ordered:
        tensors["weight_g_idx"] = g_idx.astype(np.int32)
    return tensors, dense


def int_quantized(weight: np.ndarray, group: int = -1, *, zero_points: bool = False, scale_type: np.dtype | type = np.float32) -> Packed:
    """compressed-tensors' int8 `weight`, one scale a row or a group."""
    values, scales, zeros, dense = quantized(weight, 8, groups_of(weight.shape[1], group), zero_points, scale_type)
    tensors = {"weight": (values - 128).astype(np.int8), "weight_scale": scales.astype(scale_type)}
    if zero_points:
        tensors["weight_zero_point"] = (zeros - 128).astype(np.int8)
    return tensors, dense


def float8(
    weight: np.ndarray, rows: int, inputs: int, scale_type: np.dtype | type = np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float8 values, scales [row blocks, input blocks] and the dense weight, for blocks of ``rows`` x ``inputs``."""
    scales = np.zeros((-(-weight.shape[0] // rows), -(-weight.shape[1] // inputs)), np.float32)
    values, dense = np.zeros(weight.shape, float8_e4m3fn), np.zeros(weight.shape, np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(i * rows, (i + 1) * rows), slice(j * inputs, (j + 1) * inputs))
            scales[i, j] = np.float32(np.asarray(max(np.abs(weight[block]).max() / 448, 1e-6), scale_type))
            values[block] = np.clip(weight[block] / scales[i, j], -448, 448).astype(float8_e4m3fn)
            dense[block] = (values[block].astype(np.float64) * scales[i, j]).astype(np.float32)
    return values, scales.astype(scale_type), dense
