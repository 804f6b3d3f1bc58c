"""Blocks of a GGUF file whose values are integers times a scale: Q8_0 and Q4_0, 32 inputs with a float16 scale before them.

Q4_1 has an offset beside its scale, K-quants have scales of scales: these are dequantized (docs/models.md).
"""

from __future__ import annotations

import numpy as np

from .stored import INT4, INT8, Form, StoredIntegers

BLOCK = 32
FORMS = {"Q8_0": Form(INT8, BLOCK, False, np.dtype(np.float16)), "Q4_0": Form(INT4, BLOCK, False, np.dtype(np.float16))}


def integers(raw: np.ndarray, kind: str) -> StoredIntegers:
    """Rows of bytes [n, inputs / BLOCK * bytes of a block] of a tensor of the type ``kind``, one of FORMS.

    Of the sixteen bytes of a Q4_0 block the low halves are the first sixteen values and the high halves the others, plus 8.
    """
    blocks = np.ascontiguousarray(raw).reshape(len(raw), -1, 2 + BLOCK * (8 if kind == "Q8_0" else 4) // 8)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    packed = np.ascontiguousarray(blocks[..., 2:])
    values = packed.view(np.int8) if kind == "Q8_0" else (np.concatenate([packed & 15, packed >> 4], axis=-1) - np.uint8(8)).view(np.int8)
    return StoredIntegers(values.reshape(len(raw), -1), scales, None, BLOCK)
