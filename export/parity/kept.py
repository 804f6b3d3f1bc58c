"""What a quantized checkpoint adds to the check of stored weights: products of parts, zero points, inputs in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from ..checkpoints.quantized.stored import HasIntegers
from ..checkpoints.safetensors import Checkpoint
from ..graphs.builder import INT4, INT8
from ..graphs.weights import unpack_values

Read = Callable[[str], np.ndarray]
"""A tensor of the graph by its name."""


def products_of(
    stem: str, parts: Sequence[str], tensors: Mapping[str, onnx.TensorProto], outputs: Callable[[str], int]
) -> Iterator[tuple[str, int]]:
    """The name in the graph of each part's product, and the part's first output there. Parts of a joined matrix that are stored differently
    have products of their own. ``outputs``: of a part."""
    divided = any(name.startswith(f"{stem}.0.") for name in tensors)
    index, first = 0, 0
    for part in parts:
        name = f"{stem}.{index}" if divided else stem
        yield name, first
        first += outputs(part)
        if divided and first == _outputs(name, tensors):
            index, first = index + 1, 0


def _outputs(name: str, tensors: Mapping[str, onnx.TensorProto]) -> int:
    found = next(tensors[f"{name}.{kind}"] for kind in ("kept4", "kept8", "quantized", "weight") if f"{name}.{kind}" in tensors)
    return int(found.dims[1 if found.data_type in (INT4, INT8) else 0])


def places(name: str, columns: np.ndarray, tensors: Mapping[str, onnx.TensorProto], read: Read) -> np.ndarray:
    """Where inputs stand in a stored matrix."""
    return np.argsort(read(f"{name}.order"))[columns] if f"{name}.order" in tensors else columns


def kept_sample(
    name: str, rows: np.ndarray, columns: np.ndarray, inputs: int, tensors: Mapping[str, onnx.TensorProto], read: Read
) -> np.ndarray | None:
    """float32 [rows, columns] of a MatMulNBits with a checkpoint's own groups and zero points; None for another product."""
    bits = next((bits for bits in (4, 8) if f"{name}.kept{bits}" in tensors), None)
    if bits is None:
        return None
    packed = read(f"{name}.kept{bits}")
    outputs, count, width = packed.shape
    block = columns // (width * 8 // bits)
    values = unpack_values(packed[rows].reshape(len(rows), -1), bits)[:, columns].astype(np.float32)
    scales = np.asarray(read(f"{name}.scale").reshape(outputs, count)[rows][:, block], np.float32)
    if f"{name}.zero" not in tensors:
        return np.asarray((values - np.float32(1 << (bits - 1))) * scales)
    return np.asarray((values - unpack_values(read(f"{name}.zero").reshape(outputs, -1)[rows], bits)[:, block]) * scales)


def layers_are_stored_alike(checkpoint: Checkpoint) -> bool:
    """Whether every layer's matrices are quantized in the same way, so that all layers have the same products."""
    if not isinstance(checkpoint, HasIntegers):
        return True
    found = set()
    for layer in range(checkpoint.arch.layers):
        parts = [part for parts, _, _ in checkpoint.arch.linears.values() for part in parts]
        forms = [checkpoint.form(f"model.layers.{layer}.{part}.weight") for part in parts]
        found.add(tuple(form and (form.kind, form.block, form.zero_points, form.scale_type, form.order is None) for form in forms))
    return len(found) == 1
