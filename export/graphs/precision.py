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
    """How weights are stored and in which type the graph computes (ONNX types)."""

    name: str
    compute: int  # activations and KV cache
    stored: int  # weights that are not quantized
    matrix: int | None = None  # weight-only quantization of the layers' matrices
    head: int | None = None
    embedding: int | None = None  # one scale a token


NUMPY_TYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype(np.float32), FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(bfloat16)}


def _by_name(*precisions: Precision) -> dict[str, Precision]:
    return {precision.name: precision for precision in precisions}


# For ONNX Runtime on CPU. In int4 the head keeps eight bits, because four bits cost most quality there; llama.cpp and OpenVINO do the same.
PRECISIONS = _by_name(
    Precision("fp32", FLOAT, FLOAT),
    Precision("fp16", FLOAT16, FLOAT16),
    # ONNX Runtime has no bfloat16 kernels on a CPU: the file is half as large, and the weights are cast to float32 at load.
    Precision("bf16", FLOAT, BFLOAT16),
    Precision("int8", FLOAT, FLOAT, INT8, INT8, INT8),
    Precision("int4", FLOAT, FLOAT, INT4, INT8, INT8),
)
# For TensorRT. All but fp32 and bf16 compute in float16.
TENSORRT_PRECISIONS = _by_name(
    Precision("fp32", FLOAT, FLOAT),
    Precision("fp16", FLOAT16, FLOAT16),
    Precision("bf16", BFLOAT16, BFLOAT16),
    Precision("fp8", FLOAT16, FLOAT16, FLOAT8, FLOAT8),
    Precision("int8", FLOAT16, FLOAT16, INT8, INT8),
    Precision("int4", FLOAT16, FLOAT16, INT4, INT8),
)
ONNXRUNTIME, TENSORRT = "onnxruntime", "tensorrt"
BACKENDS = {ONNXRUNTIME: PRECISIONS, TENSORRT: TENSORRT_PRECISIONS}


def is_quantized(kind: int | None, inputs: int) -> bool:
    """Whether a matrix is quantized to ``kind`` (None: no quantization). int8 and int4 need inputs that blocks divide evenly."""
    return kind == FLOAT8 or (kind is not None and inputs % BLOCK == 0)
