"""Products with matrices whose values come from a quantized checkpoint: the same integers, scales and zero points, not rounded again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from onnx import helper

from ..checkpoints.quantized.stored import BITS, INT4, INT8, HasIntegers, StoredIntegers
from ..checkpoints.safetensors import Weights
from . import builder
from .builder import FLOAT, FLOAT8, FLOAT16, INT64, UINT8, GraphBuilder
from .int8.products import integer_product
from .int8.row_products import weight_product
from .kept_integers import Piece, is_whole_rows, product_block
from .precision import NUMPY_TYPES
from .weights import BLOCK, WeightCount, pack_int4, pack_values, row_ranges

_CHUNKS = 32  # row blocks that are read at a time
_INTEGER_TYPES = {INT4: builder.INT4, INT8: builder.INT8}


class StoredProducts:
    """Writes the products of one graph. ``source``: the checkpoint, which HasIntegers."""

    def __init__(self, g: GraphBuilder, weights: WeightCount, source: Weights) -> None:
        self.g, self.weights, self.source = g, weights, source

    def product(self, x: str, stem: str, piece: Piece, inputs: int, static: bool) -> str:
        """x [n, inputs] times the transposed matrix [outputs, inputs]."""
        form = piece.form
        assert form is not None
        if (order := form.permutation) is not None:
            places = self.g.initializer(self.weights.add(f"{stem}.order", INT64, (inputs,), [order.astype(np.int64)]))
            x = self.g.op("Gather", x, places, axis=1)
        if form.kind not in _INTEGER_TYPES:
            return self.g.op("Gemm", x, self._float8(stem, piece, inputs), transB=1)
        if is_whole_rows(form, inputs):
            if static:
                return weight_product(self.g, x, *self._whole_rows(stem, piece, inputs, FLOAT16), builder.INT8)
            return integer_product(self.g, x, *self._whole_rows(stem, piece, inputs, FLOAT))
        if static:
            return self.g.op("MatMul", x, self._blocked(stem, piece, inputs))
        return self._blocks(x, stem, piece, inputs)

    def _rows(self, piece: Piece) -> Iterator[StoredIntegers]:
        """All rows of the piece, a chunk at a time."""
        assert isinstance(self.source, HasIntegers)
        for part in piece.parts:
            for start, stop in row_ranges(self.source, part, _CHUNKS):
                yield self.source.integers(part, start, stop)

    def _blocks(self, x: str, stem: str, piece: Piece, inputs: int) -> str:
        """ONNX Runtime's MatMulNBits: values from 0, scales and zero points of blocks of inputs."""
        form, outputs = piece.form, piece.outputs
        assert form is not None
        bits, block = BITS[form.kind], product_block(form, inputs)
        count = -(-inputs // block)
        small: list[tuple[np.ndarray, np.ndarray | None]] = []

        def values() -> Iterator[np.ndarray]:
            for rows in self._rows(piece):
                zero = rows.zero_points
                small.append(
                    (_finer(rows.scales, rows.block, block, count), None if zero is None else _finer(zero, rows.block, block, count))
                )
                yield pack_values(np.pad(rows.values, ((0, 0), (0, count * block - inputs))), bits)

        shape = (outputs, count, block * bits // 8)
        kept = self.g.initializer(self.weights.add(f"{stem}.kept{bits}", UINT8, shape, values()))
        scales = self._scales(f"{stem}.scale", form.scale_type, (outputs * count,), (scale for scale, _ in small))
        zeros = []
        if form.zero_points:
            width = -(-count * bits // 8)
            padded = (pack_values(np.pad(zero, ((0, 0), (0, width * 8 // bits - count))), bits) for _, zero in small if zero is not None)
            zeros = [self.g.initializer(self.weights.add(f"{stem}.zero", UINT8, (outputs * width,), padded))]
        sizes: dict[str, Any] = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
        return self.g.op("MatMulNBits", x, kept, scales, *zeros, domain="com.microsoft", accuracy_level=4, **sizes)

    def _scales(self, name: str, kind: np.dtype[Any], shape: tuple[int, ...], chunks: Iterator[np.ndarray]) -> str:
        """float32 scales, stored in the checkpoint's type."""
        stored = helper.np_dtype_to_tensor_dtype(kind)
        tensor = self.g.initializer(self.weights.add(name, stored, shape, (chunk.astype(kind) for chunk in chunks)))
        return tensor if stored == FLOAT else self.g.op("Cast", tensor, to=FLOAT)

    def _whole_rows(self, stem: str, piece: Piece, inputs: int, scale_type: int) -> tuple[str, str]:
        """int8 [inputs, outputs] and scales [outputs] for `integer_product` and `weight_product`."""

        def arrays() -> Iterator[np.ndarray]:
            values, scales, start = np.empty((inputs, piece.outputs), np.int8), np.empty(piece.outputs, NUMPY_TYPES[scale_type]), 0
            for rows in self._rows(piece):
                stop = start + len(rows.values)
                values[:, start:stop], scales[start:stop] = rows.values.T, rows.scales[:, 0]
                start = stop
            yield values
            yield scales

        made = arrays()
        weight = self.weights.add(f"{stem}.quantized", builder.INT8, (inputs, piece.outputs), islice(made, 1))
        scale = self.weights.add(f"{stem}.scale", scale_type, (piece.outputs,), made)
        return self.g.initializer(weight), self.g.initializer(scale)

    def _blocked(self, stem: str, piece: Piece, inputs: int) -> str:
        """For TensorRT: [inputs, outputs] behind a DequantizeLinear in blocks of BLOCK inputs, scales in float16."""
        form, count = piece.form, inputs // BLOCK
        assert form is not None
        kind = _INTEGER_TYPES[form.kind]

        def arrays() -> Iterator[np.ndarray]:
            values, scales, start = np.empty((inputs, piece.outputs), np.int8), np.empty((count, piece.outputs), np.float16), 0
            for rows in self._rows(piece):
                stop = start + len(rows.values)
                values[:, start:stop], scales[:, start:stop] = rows.values.T, _finer(rows.scales, rows.block, BLOCK, count).T
                start = stop
            yield pack_int4(values) if kind == builder.INT4 else values
            yield scales

        made = arrays()
        weight = self.weights.add(f"{stem}.quantized", kind, (inputs, piece.outputs), islice(made, 1))
        scale = self.weights.add(f"{stem}.scale", FLOAT16, (count, piece.outputs), made)
        return self.g.op("DequantizeLinear", self.g.initializer(weight), self.g.initializer(scale), axis=0, block_size=BLOCK)

    def _float8(self, stem: str, piece: Piece, inputs: int) -> str:
        """float8 [outputs, inputs] behind a DequantizeLinear with one scale a row in float16, in which TensorRT's fp8 graphs compute."""
        scales: list[np.ndarray] = []

        def values() -> Iterator[np.ndarray]:
            for rows in self._rows(piece):
                scales.append(rows.scales[:, 0].astype(np.float16))
                yield rows.values

        quantized = self.g.initializer(self.weights.add(f"{stem}.quantized", FLOAT8, (piece.outputs, inputs), values()))
        scale = self.g.initializer(self.weights.add(f"{stem}.scale", FLOAT16, (piece.outputs,), scales))
        return self.g.op("DequantizeLinear", quantized, scale, axis=0)


def _finer(stored: np.ndarray, size: int, block: int, count: int) -> np.ndarray:
    """Scales or zero points [n, groups] of groups of ``size`` inputs, for ``count`` blocks of ``block``."""
    return stored if size <= block else np.repeat(stored, -(-size // block), axis=1)[:, :count]
