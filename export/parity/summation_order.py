"""Checks whether this processor's matrix products add their terms one after the other.

The int8 and int4 graphs are lossless only then (export/graphs/target.py, `_ordered_attention`; export/graphs/lanes/paged_attention.py;
docs/design.md).
"""

from __future__ import annotations

import numpy as np

from runtime.decoding.target import SUM_BLOCK
from runtime.manifest.graphs import PAGE_SLOTS

from ..graphs.builder import FLOAT, GraphBuilder
from ..graphs.target import ORDERED_WIDTH

_SPANS = (40, 300, SUM_BLOCK - 40)  # slots with a weight
_PAGE_SPANS = (2, 40, PAGE_SLOTS - 30)
_ROWS = (2, 3, 12, 64)
_GAPS = (1, 7, 30)  # slots with weight zero, put between them


def adds_pages_in_order(head_dim: int, threads: int = 2) -> bool:
    """The same for the slots of one page, with values of ``head_dim`` columns, as in the graphs with lanes."""
    return adds_in_order(threads, head_dim, _PAGE_SPANS)


def adds_in_order(threads: int = 2, width: int = ORDERED_WIDTH, spans: tuple[int, ...] = _SPANS) -> bool:
    """Whether a row of attention weights times values gives the same bits however many slots of weight zero lie between, and however
    many rows are computed. Tried on random numbers with ``width`` columns and ``spans`` slots of another weight; takes a few
    milliseconds."""
    import onnxruntime

    g = GraphBuilder("order")
    g.op("MatMul", g.input("weights", FLOAT, ["rows", "slots"]), g.input("values", FLOAT, ["slots", width]), out="sums")
    g.output("sums", FLOAT, ["rows", width])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(g.model("resps-export").SerializeToString(), options, providers=["CPUExecutionProvider"])

    def sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"weights": weights, "values": values})[0])

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
