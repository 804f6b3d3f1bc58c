"""Reads the integers of a quantized checkpoint back out of an exported graph, by ONNX Runtime's definition of its operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

PARTS = {"qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "o": ("self_attn.o_proj",),
         "gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",)}  # fmt: skip


def _bytes_of(packed: np.ndarray, bits: int) -> np.ndarray:
    """MatMulNBits' bytes [..., n] -> integers, the first in the low half of a byte."""
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def matrices(file: Path) -> dict[str, np.ndarray]:
    """Every stored matrix [outputs, inputs] in float64, by ONNX Runtime's definition of its operators, inputs in the model's order."""
    model = onnx.load(file)
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    found: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            stem = node.input[1].rpartition(".kept")[0]
            how = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            assert how["accuracy_level"] == 4
            outputs, inputs, bits, block = how["N"], how["K"], how["bits"], how["block_size"]
            count = -(-inputs // block)
            values = _bytes_of(arrays[node.input[1]].reshape(outputs, count, -1), bits).astype(np.float64)
            scale = arrays[made[node.input[2]].input[0] if node.input[2] in made else node.input[2]].astype(np.float64)
            zero = np.full((outputs, count), 2.0 ** (bits - 1))
            if len(node.input) > 3:
                zero = _bytes_of(arrays[node.input[3]].reshape(outputs, -1), bits)[:, :count].astype(np.float64)
            dense = ((values - zero[..., None]) * scale.reshape(outputs, count, 1)).reshape(outputs, -1)[:, :inputs]
            found[stem] = dense
            if f"{stem}.order" in arrays:
                found[stem] = np.empty_like(dense)
                found[stem][:, arrays[f"{stem}.order"]] = dense
        elif node.op_type == "MatMulInteger":
            stem = node.input[1].removesuffix(".quantized")
            found[stem] = (arrays[node.input[1]] * arrays[f"{stem}.scale"].astype(np.float64)).T
    return found


def expect_own_weights(file: Path, weights: dict[str, np.ndarray], layers: int, rounded: tuple[str, ...] = ()) -> None:
    """The integers of every layer stand for ``weights``, by their names in a checkpoint, to within one unit in the last place of float32.
    ``rounded``: ends of the names of matrices that have no integers."""
    stored = matrices(file)
    for layer in range(layers):
        for matrix, parts in PARTS.items():
            for name, found, expected in _pairs(
                stored, f"layers.{layer}.{matrix}", [f"model.layers.{layer}.{part}.weight" for part in parts], weights
            ):
                if not name.endswith(rounded or ("no such name",)):
                    assert (np.abs(found.astype(np.float32) - expected) <= np.spacing(np.abs(expected))).all(), name


def _pairs(
    stored: dict[str, np.ndarray], stem: str, names: list[str], weights: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, stored matrix and its weight, part by part. Parts that are stored differently have a product each."""
    if stem in stored:
        found = np.split(stored[stem], np.cumsum([len(weights[name]) for name in names])[:-1])
        yield from ((name, each, weights[name]) for name, each in zip(names, found, strict=True))
    else:
        yield from ((name, stored.get(f"{stem}.{index}", np.zeros(())), weights[name]) for index, name in enumerate(names))
