"""How each precision stores weights and what it computes in, for ONNX Runtime and for TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from .builder import BFLOAT16, FLOAT, FLOAT8, FLOAT16, INT4, INT8
from .weights import BLOCK


@dataclass(frozen=True)
class Precision:
    """How weights are stored and what the graph computes in (ONNX types)."""

    name: str
    compute: int  # activations and KV
    stored: int  # weights that are not quantized
    matrix: int | None = None  # weight-only quantization of the layers' matrices
    head: int | None = None
    embedding: int | None = None


NUMPY_TYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype(np.float32), FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(bfloat16)}


# The head keeps eight bits in int4: it is where four bits cost most quality, and llama.cpp and OpenVINO do the same.
# On ONNX Runtime's CPU:
PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", FLOAT, FLOAT),
        Precision("fp16", FLOAT16, FLOAT16),
        # ONNX Runtime has no bfloat16 kernels on a CPU: half the file, float32 once loaded.
        Precision("bf16", FLOAT, BFLOAT16),
        Precision("int8", FLOAT, FLOAT, INT8, INT8, INT8),
        Precision("int4", FLOAT, FLOAT, INT4, INT8, INT8),
    )
}
# On a GPU everything but fp32 and bf16 is computed in float16.
TENSORRT_PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", FLOAT, FLOAT),
        Precision("fp16", FLOAT16, FLOAT16),
        Precision("bf16", BFLOAT16, BFLOAT16),
        Precision("fp8", FLOAT16, FLOAT16, FLOAT8, FLOAT8),
        Precision("int8", FLOAT16, FLOAT16, INT8, INT8),
        Precision("int4", FLOAT16, FLOAT16, INT4, INT8),
    )
}
ONNXRUNTIME, TENSORRT = "onnxruntime", "tensorrt"
BACKENDS = {ONNXRUNTIME: PRECISIONS, TENSORRT: TENSORRT_PRECISIONS}


def is_quantized(kind: int | None, inputs: int) -> bool:
    """Whether a matrix of this many inputs that ought to be stored in ``kind`` is: blocks must fit. ``None``: stored as it is."""
    return kind == FLOAT8 or (kind is not None and inputs % BLOCK == 0)
