"""The weights of a graph: streamed from a checkpoint into the external file, quantized on the way, and the nodes that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from ..checkpoints.safetensors import Weights
from ..errors import CheckpointError
from .builder import FLOAT, FLOAT8, FLOAT16, INT4, INT8, UINT8, GraphBuilder
from .embedding import Embedding, is_quantized_embedding
from .int8.row_products import weight_product
from .precision import NUMPY_TYPES, Precision, is_quantized
from .weights import (
    BLOCK,
    Converted,
    WeightCount,
    converted_rows,
    pack_int4,
    pack_values,
    quantize_blocks,
    quantize_outputs,
    quantize_rows,
)

Quantize = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""float32 [outputs, inputs] -> integers [outputs, ...] and scales [outputs, ...]."""


class StorageWriter:
    """Adds weights to a graph. ``source`` may be None where ``weights`` only counts: nothing is read before a WeightFile asks for it."""

    def __init__(self, name: str, source: Weights | None, precision: Precision, weights: WeightCount) -> None:
        self.name, self.source, self.precision, self.weights = name, source, precision, weights
        self.first_byte = weights.size  # in the file, of this graph's weights
        self.g = GraphBuilder(name)

    def _product(self, x: str, stem: str, shape: tuple[int, int], parts: list[str], kind: int | None, *bias: str) -> str:
        """x times the transposed weight [outputs, inputs], quantized to ``kind`` where blocks fit."""
        if kind == FLOAT8:
            return self.g.op("Gemm", x, self._scaled(stem, shape, parts), *bias, transB=1)
        if kind is not None and is_quantized(kind, shape[1]):
            bits = 4 if kind == INT4 else 8
            if self.precision.compute == FLOAT:
                product = self._blocks_product(
                    x, stem, shape, parts, bits, partial(quantize_blocks, bits=bits, stored=np.float16), shape[1]
                )
            else:
                product = self._static_product(x, stem, shape, parts, kind)
            return self.g.op("Add", product, *bias) if bias else product
        weight = self._computable(self._stored(f"{stem}.weight", shape, parts))
        return self.g.op("Gemm", x, weight, *bias, transB=1)

    def _blocks_product(
        self, x: str, stem: str, shape: tuple[int, int], parts: list[str], bits: int, quantize: Quantize, inputs: int
    ) -> str:
        """x [n, inputs] times blocked integers, in ONNX Runtime's own operator for it. ``inputs``: of what ``quantize`` returns.

        The standard's DequantizeLinear and MatMul would be fused to the same operator, but only while loading, which then transposes every
        matrix: five times the load time. Scales are stored in 16 bits; ONNX Runtime casts them once, while loading.
        """
        outputs, blocks = shape[0], inputs // BLOCK
        scales: list[np.ndarray] = []

        def packed(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, scale = quantize(rows)
            return pack_values(value, bits), scale.astype(np.float16)

        def values() -> Iterator[np.ndarray]:
            for value, scale in self._rows(shape, parts, packed):
                scales.append(scale)
                yield value

        value = self.g.initializer(self.weights.add(f"{stem}.quantized", UINT8, (outputs, blocks, 4 * bits), values()))
        stored = self.g.initializer(self.weights.add(f"{stem}.scale", FLOAT16, (outputs * blocks,), scales))
        scale = self.g.op("Cast", stored, to=FLOAT)
        return self.g.op(
            "MatMulNBits", x, value, scale, domain="com.microsoft", N=outputs, K=inputs, bits=bits, block_size=BLOCK, accuracy_level=4
        )

    def _static_product(self, x: str, stem: str, shape: tuple[int, int], parts: list[str], kind: int) -> str:
        """x times integers [inputs, outputs] behind a DequantizeLinear, for TensorRT: int4 in blocks, int8 with one scale an output."""
        if kind == INT8:
            return weight_product(self.g, x, *self._integers(stem, shape, parts, kind, quantize_outputs, shape[:1]), kind)
        quantize = partial(quantize_blocks, bits=4)
        value, scale = self._integers(stem, shape, parts, kind, quantize, (shape[1] // BLOCK, shape[0]))
        return self.g.op("MatMul", x, self.g.op("DequantizeLinear", value, scale, axis=0, block_size=BLOCK))

    def _integers(
        self,
        stem: str,
        shape: tuple[int, int],
        parts: list[str],
        kind: int,
        quantize: Quantize,
        scales: tuple[int, ...],
        chunks: int = 1,
        scale_type: int | None = None,
    ) -> tuple[str, str]:
        """Integers [inputs, outputs] and scales of the shape ``scales``, [..., outputs], of a matrix [outputs, inputs]. uint8 has 128 added
        to all. Only this small form of it is in memory. ``scale_type``: the compute type if None."""
        found: list[np.ndarray] = []

        def turned(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, scale = quantize(rows)
            return np.ascontiguousarray(value.T), scale.T

        def values() -> Iterator[np.ndarray]:
            whole, end = np.empty(shape[::-1], np.int8), 0
            for value, scale in self._rows(shape, parts, turned, chunks):
                whole[:, end : end + value.shape[1]] = value
                found.append(scale)
                end += value.shape[1]
            yield pack_int4(whole) if kind == INT4 else whole.view(np.uint8) ^ np.uint8(128) if kind == UINT8 else whole

        def joined() -> Iterator[np.ndarray]:
            yield np.concatenate(found, axis=-1)

        quantized = self.g.initializer(self.weights.add(f"{stem}.quantized", kind, shape[::-1], values()))
        return quantized, self._computed(f"{stem}.scale", scales, joined(), scale_type)

    def _table(self, name: str, shape: tuple[int, int]) -> Embedding:
        """A checkpoint's table of embeddings [V, H]."""
        if not is_quantized_embedding(self.precision, shape[1]):
            return Embedding(self.g.tensor(self._stored(name, shape, [name])))
        table, scale = self._by_rows(name, INT8, shape, [name], quantize_outputs)
        return Embedding(self.g.tensor(table), self.g.tensor(scale))

    def _scaled(self, stem: str, shape: tuple[int, int], parts: list[str]) -> str:
        """float8 weights with one scale an output behind a DequantizeLinear."""
        return self.g.op("DequantizeLinear", *self._by_rows(stem, FLOAT8, shape, parts, quantize_rows), axis=0)

    def _by_rows(
        self,
        stem: str,
        kind: int,
        shape: tuple[int, int],
        parts: list[str],
        quantize: Quantize,
        scale_type: int | None = None,
    ) -> tuple[str, str]:
        """What ``quantize`` makes of a matrix [outputs, inputs]: values of its shape and one scale an output. ``scale_type``: the compute
        type if None."""
        scales: list[np.ndarray] = []

        def values() -> Iterator[np.ndarray]:
            for value, scale in self._rows(shape, parts, quantize):
                scales.append(scale)
                yield value

        quantized = self.g.initializer(self.weights.add(f"{stem}.quantized", kind, shape, values()))
        return quantized, self._computed(f"{stem}.scale", shape[:1], scales, scale_type)

    def _stored(self, name: str, shape: tuple[int, ...], parts: list[str]) -> str:
        """Checkpoint tensors, joined along the first axis, in the stored type."""
        kind = NUMPY_TYPES[self.precision.stored]
        chunks = self._rows(shape, parts, lambda rows: rows.astype(kind, copy=False))
        return self.g.initializer(self.weights.add(name, self.precision.stored, shape, chunks))

    def _rows(
        self, shape: tuple[int, ...], parts: list[str], convert: Callable[[np.ndarray], Converted], chunks: int = 1
    ) -> Iterator[Converted]:
        """``convert`` of checkpoint tensors, joined along the first axis, as float32 row blocks. Raises CheckpointError unless that has
        ``shape``."""
        assert self.source is not None  # only a WeightFile iterates
        found = [self.source.shape(part) for part in parts]
        if any(each[1:] != shape[1:] for each in found) or sum(each[0] for each in found) != shape[0]:
            raise CheckpointError(f"{', '.join(parts)} have shapes {found}, the config asks for {shape} — config and weights differ")
        yield from converted_rows(self.source, parts, convert, chunks)

    def _computable(self, stored: str) -> str:
        same = self.precision.stored == self.precision.compute
        return stored if same else self.g.op("Cast", stored, to=self.precision.compute)

    def _computed(self, name: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray], kind: int | None = None) -> str:
        """A tensor in the type ``kind``, the compute type if None."""
        kind = self.precision.compute if kind is None else kind
        stored = NUMPY_TYPES[kind]
        return self.g.initializer(self.weights.add(name, kind, shape, (chunk.astype(stored) for chunk in chunks)))
