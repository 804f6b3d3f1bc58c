"""Checks how this processor's products add, on which the quantized graphs for the CPU rely.

* int8 and int4 graphs are lossless only if float32 products add their terms one after the other (export/graphs/target.py,
  `_ordered_attention`; export/graphs/lanes/paged_attention.py; docs/design.md).
* Products of one digit are exact only if pairs of integer products are added in 32 bits, unless the weights are unsigned
  (export/graphs/int8/products.py).
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ...manifest.graphs import PAGE_SLOTS, SUM_BLOCK
from ..ort_process import import_onnxruntime

ORDERED_WIDTH = 16
"""Number of columns of a value matrix. ONNX Runtime's products (MLAS) sum such a narrow matrix in blocks of 1,024 rows. With 64 columns the
blocks have only 256 rows, and matrices are split if there are more threads than matrices."""
# ONNX graphs of one node with the inputs a and b: MatMul of float32, and MatMulInteger of uint8 and int8. An engine is loaded without onnx.
_MATMUL = "2nae)3K0qcVG03a5&?N422EjfO?7M%0cTnj3ISmf5DE?m0TK!d0}=sp3Ih@Wb6OP&0b&vm3JwSX5()|f5&?4x0}=suVhIWXc@hK)0tf*@1PTBU4F"
_MATMUL_INTEGER = "2nae>3K$9jVG03a5&?N44NYNmO?7NZZggd5WpWY$XId2s0bvpl3JwSY5()|f5&?1w0}=sqS``WbViFJv4hRDh3JL=f0dooi5&?H&2?_yu5(EkY2nIp~3IGrd"
_SPANS = (40, 300, SUM_BLOCK - 40)  # slots with a weight
_PAGE_SPANS = (2, 40, PAGE_SLOTS - 30)
_ROWS = (2, 3, 12, 64)
_GAPS = (1, 7, 30)  # slots with weight zero, put between them


def adds_pairs_exactly() -> bool:
    """Whether products of uint8 and int8 are exact for all values, or two of them are added in 16 bits."""
    multiply = _Product(_MATMUL_INTEGER, 1)
    weights = np.full((64, 16), 127, np.int8)
    return all((multiply(np.full((rows, 64), 255, np.uint8), weights) == 64 * 127 * 255).all() for rows in (1, 2, 16))


def adds_pages_in_order(head_dim: int, threads: int = 2) -> bool:
    """The same for the slots of one page, with values of ``head_dim`` columns, as in the graphs with lanes."""
    return adds_in_order(threads, head_dim, _PAGE_SPANS)


def adds_in_order(threads: int = 2, width: int = ORDERED_WIDTH, spans: tuple[int, ...] = _SPANS) -> bool:
    """Whether a row of attention weights times values gives the same bits however many slots of weight zero lie between, and however
    many rows are computed. Tried on random numbers with ``width`` columns and ``spans`` slots of another weight; takes a few
    milliseconds."""
    sums = _Product(_MATMUL, threads)
    random = np.random.default_rng(0)
    for span in spans:
        weights, values = random.random((2, span), np.float32), random.standard_normal((span, width), np.float32)
        expected = sums(weights, values)
        for rows in _ROWS:
            for gap in _GAPS:
                slots = np.sort(random.choice(span + gap, span, replace=False))
                sparse, mixed = np.zeros((rows, span + gap), np.float32), random.standard_normal((span + gap, width), np.float32)
                sparse[-2:, slots], mixed[slots] = weights, values
                sparse[:-2] = random.random((rows - 2, span + gap), np.float32)
                if not np.array_equal(sums(sparse, mixed)[-2:], expected):
                    return False
    return True


class _Product:
    """A product of two matrices in ONNX Runtime. ``graph``: in base 85."""

    def __init__(self, graph: str, threads: int) -> None:
        onnxruntime: Any = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(base64.b85decode(graph), options, providers=["CPUExecutionProvider"])

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {"a": a, "b": b})[0])
