"""Checks the weights in an exported graph's file against the checkpoint: rows of every matrix, all norms and biases.

Each weight of the sample must be as near to the checkpoint's as rounding leaves it, half a step of its own scale. A tensor that was
swapped, shifted, turned or read from elsewhere differs by many steps; so does one whose scales belong to other blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Checkpoint
from ..errors import ParityError
from ..graphs.builder import FLOAT8, INT4, UINT8
from ..graphs.int4_offsets import offset_columns
from ..graphs.target import EMBEDDING
from ..graphs.weights import BLOCK, unpack_values
from .kept import kept_sample, places, products_of

ROWS, WINDOWS = 4, 2  # of each checkpoint tensor: rows beside the first and the last, and ranges of inputs beside those
WIDTH = 2 * BLOCK  # inputs in a range
_SLACK = 1.02  # scales are rounded to 16 bits, values to float32
_HALF_STEP, _WHOLE_STEP = 0.5 * _SLACK, 1.0 * _SLACK
_FEEDBACK = 16  # half steps; a weight that belongs elsewhere differs by dozens
_FP8 = 2.0**-4 * _SLACK  # half of the last of three bits, as a share of the value


def check_stored(file: Path, checkpoint: Checkpoint, feedback: bool = False) -> None:
    """Compare a sample of the weights that the graph in ``file`` names with the checkpoint's. ``feedback``: whether they were rounded with
    error feedback, which moves a weight by a few steps. Raises ParityError with the tensor's name."""
    tensors = {each.name: each for each in onnx.load(file, load_external_data=False).graph.initializer}
    stored, random = _Stored(file.parent, tensors), np.random.default_rng(0)
    for stem, parts, inputs in matrices(checkpoint.arch):
        found = products_of(stem, parts, tensors, lambda part: checkpoint.shape(part)[0])
        for part, (name, first) in zip(parts, found, strict=True):
            outputs = checkpoint.shape(part)[0]
            rows = np.unique([0, outputs - 1, *random.integers(0, outputs, ROWS)])
            columns = _ranges(inputs, random)
            expected = np.concatenate([checkpoint.read(part, row, row + 1) for row in rows.tolist()])[:, columns]
            actual, allowed = stored.sample(name, first + rows, columns, inputs)
            _expect_near(part, expected, actual, allowed * _FEEDBACK if feedback and part != EMBEDDING else allowed)
    for name, parts in _vectors(checkpoint.arch).items():
        expected = np.concatenate([checkpoint.read(part) for part in parts])
        _expect_near(parts[0], expected, np.asarray(stored.read(name), np.float32), stored.rounding(name) * np.abs(expected))


def matrices(arch: Arch) -> list[tuple[str, list[str], int]]:
    """(name in the graph, checkpoint tensors joined along the outputs, inputs) of every matrix."""
    found = [(EMBEDDING, [EMBEDDING], arch.hidden)]
    for layer in range(arch.layers):
        for matrix, (parts, _, inputs) in arch.linears.items():
            found.append((f"layers.{layer}.{matrix}", [f"model.layers.{layer}.{part}.weight" for part in parts], inputs))
    return [*found, ("head", [EMBEDDING if arch.tied_head else "lm_head.weight"], arch.hidden)]


def _vectors(arch: Arch) -> dict[str, list[str]]:
    """The checkpoint tensors of each norm and bias, by their name in the graph."""
    names, found = ["model.norm.weight"], {}
    for layer in range(arch.layers):
        prefix = f"model.layers.{layer}."
        names += [f"{prefix}{norm}layernorm.weight" for norm in ("input_", "post_attention_")]
        if arch.qk_norm:
            names += [f"{prefix}self_attn.{norm}_norm.weight" for norm in "qk"]
        for matrix, biased in (("qkv", arch.qkv_bias), ("o", arch.output_bias)):
            if biased:
                found[f"layers.{layer}.{matrix}.bias"] = [f"{prefix}{part}.bias" for part in arch.linears[matrix][0]]
    return {**found, **{name: [name] for name in names}}


def _ranges(inputs: int, random: np.random.Generator) -> np.ndarray:
    """Indices of whole ranges of inputs: the first, the last, and some between."""
    starts = {0, max(0, inputs - WIDTH), *(int(start) for start in random.integers(0, max(1, inputs - WIDTH), WINDOWS))}
    return np.concatenate([np.arange(start, min(inputs, start + WIDTH)) for start in sorted(starts)])


def _expect_near(name: str, expected: np.ndarray, actual: np.ndarray, allowed: np.ndarray) -> None:
    if expected.shape != actual.shape or not (np.abs(expected - actual) <= allowed + 1e-6 * np.abs(expected)).all():
        raise ParityError(f"the exported weights differ from the checkpoint's {name} — please report the model and the precision")


@dataclass(frozen=True)
class _Stored:
    """The tensors of a graph in its weight file."""

    directory: Path
    tensors: dict[str, onnx.TensorProto]

    def read(self, name: str) -> np.ndarray:
        """A tensor, mapped from the file; INT4 as bytes."""
        tensor = self.tensors[name]
        place = {entry.key: entry.value for entry in tensor.external_data}
        kind = np.dtype(np.uint8) if tensor.data_type == INT4 else onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = (math.prod(tensor.dims) // 2,) if tensor.data_type == INT4 else tuple(tensor.dims)
        data = np.memmap(self.directory / place["location"], np.uint8, "r", int(place["offset"]), int(place["length"]))
        return data.view(kind).reshape(shape)

    def rounding(self, name: str) -> float:
        """Largest relative error of the type that a float tensor is stored in."""
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.tensors[name].data_type).name
        return {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[kind]

    def sample(self, stem: str, rows: np.ndarray, columns: np.ndarray, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights float32 [rows, columns] of a matrix [outputs, inputs], and how far rounding may have moved each."""
        columns = places(stem, columns, self.tensors, self.read)
        if (kept := kept_sample(stem, rows, columns, inputs, self.tensors, self.read)) is not None:
            return kept, np.zeros_like(kept)
        whole = next((each for each in (stem, f"{stem}.weight") if each in self.tensors), None)
        if whole is None and f"{stem}.quantized" not in self.tensors:
            return self.sample(EMBEDDING, rows, columns, inputs)  # a tied head
        if whole is not None:
            weights = np.asarray(self.read(whole)[rows][:, columns], np.float32)
            return weights, self.rounding(whole) * np.abs(weights) * _SLACK + np.float32(6e-8)
        values, scale = self.read(f"{stem}.quantized"), self.read(f"{stem}.scale")
        kind, shape = self.tensors[f"{stem}.quantized"].data_type, tuple(self.tensors[f"{stem}.quantized"].dims)
        if kind == UINT8 and len(shape) == 3:
            return _of_blocks(values, scale, rows, columns, inputs)
        if kind == FLOAT8:
            step = np.asarray(scale[rows], np.float32)[:, None]
            weights = np.asarray(values[rows][:, columns], np.float32) * step
            return weights, np.abs(weights) * _FP8 + step * np.float32(2.0**-9)
        turned = stem != EMBEDDING or shape != (scale.size, inputs)  # [inputs, outputs]
        if kind == INT4:
            flat = columns[:, None] * shape[1] + rows
            integers = ((values[flat // 2] >> (4 * (flat % 2))) & 0x0F).astype(np.int8)
            integers = np.where(integers > 7, integers - 16, integers).T
        else:
            integers = values[np.ix_(columns, rows)].T if turned else values[rows][:, columns]
            integers = integers.view(np.int8) ^ np.int8(-128) if kind == UINT8 else integers
        if scale.ndim == 2:  # blocks along the inputs, whose scales were rounded to 16 bits after the values
            step = np.asarray(scale, np.float32)[columns // BLOCK][:, rows].T
            return integers * step, np.abs(step) * (_WHOLE_STEP if kind == INT4 else _HALF_STEP + np.float32(127 * 2.0**-11))
        step = np.asarray(scale[rows], np.float32)[:, None]
        rounding = 127 * (2.0**-11 * step + 2.0**-25) if scale.dtype == np.float16 else 0.0
        return integers * step, np.asarray(step * _HALF_STEP + rounding, np.float32)


def _of_blocks(values: np.ndarray, scale: np.ndarray, rows: np.ndarray, columns: np.ndarray, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for what MatMulNBits takes, uint8 [outputs, blocks, bytes of a block], perhaps with offsets behind the inputs."""
    outputs, blocks, width = values.shape
    packed, scales = values[rows], np.asarray(scale.reshape(outputs, blocks)[rows], np.float32)
    if width == BLOCK:
        step = scales[:, columns // BLOCK]
        return (packed.reshape(len(rows), -1)[:, columns] - np.float32(128)) * step, np.abs(step) * np.float32(_HALF_STEP)
    integers = unpack_values(packed.reshape(len(rows), -1), 4).astype(np.float32) - 8
    wide = integers * np.repeat(scales, BLOCK, axis=1)
    step = np.abs(scales[:, columns // BLOCK])
    if blocks * BLOCK == inputs:
        return wide[:, columns], step * np.float32(_WHOLE_STEP)
    upper, lower = offset_columns(inputs)
    block = columns // BLOCK
    offset_step = np.abs(scales[:, (lower + block) // BLOCK])
    return wide[:, columns] + wide[:, upper + block] + wide[:, lower + block], (step + offset_step) * np.float32(_HALF_STEP)
