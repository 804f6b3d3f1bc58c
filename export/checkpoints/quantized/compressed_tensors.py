"""compressed-tensors (llm-compressor, Neural Magic, Red Hat): packed integers as weight_packed, and plain int8 or float8 as weight.

pack-quantized: weight_packed[o, i / 8] with value + 8 (+ 128) in the bits from 4 (i mod 8), weight_scale[o, groups], weight_shape, and for
asymmetric schemes weight_zero_point, packed along the outputs. int-, float- and naive-quantized: weight, weight_scale, weight_zero_point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import float8_e4m3fn

from ...errors import CheckpointError, UnsupportedModel
from .input_groups import group_size, order_of_groups
from .packing import signed, unpacked
from .plain import PlainMatrix
from .stored import INT4, INT8, Form, QuantizedMatrix, StoredIntegers, Tensors

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", "dense")
_PACKED = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_PLAIN = ("weight", "weight_scale", "weight_zero_point")
_IGNORED = tuple(f"{side}_{part}" for side in ("input", "output") for part in ("scale", "zero_point"))


def check(config: Mapping[str, Any], source: str) -> None:
    """Raises UnsupportedModel for what cannot be read exactly: other formats, sparse weights, transforms of activations."""
    sparsity = config.get("sparsity_config") or {}
    formats = [config.get("format"), *(group.get("format") for group in _groups(config))]
    unknown = [kind for kind in formats if kind is not None and kind not in FORMATS]
    if unknown:
        what = f"the format {unknown[0]!r}"
    elif sparsity.get("format", "dense") != "dense":
        what = f"sparse weights ({sparsity['format']})"
    elif (config.get("transform_config") or {}).get("config_groups"):
        what = "transforms that change activations (transform_config)"
    else:
        return
    raise UnsupportedModel(
        f"{source} asks for {what}, which compressed-tensors are not read with — export from another checkpoint of the model"
    )


def _groups(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for group in (config.get("config_groups") or {}).values():
        if isinstance(group, Mapping):
            yield group


def find(files: Tensors, config: Mapping[str, Any]) -> dict[str, QuantizedMatrix]:
    """Usual name -> matrix, for every weight with scales. What `ignore` excludes is stored as it is, and has none."""
    names = set(files.names())
    schemes = [group.get("weights") or {} for group in _groups(config)]
    found: dict[str, QuantizedMatrix] = {}
    for name in sorted(names):
        if not name.endswith(".weight_scale"):
            continue
        stem = name.removesuffix("weight_scale")
        ignored = tuple(stem + part for part in _IGNORED if stem + part in names)
        if f"{stem}weight" in names or f"{stem}weight_packed" in names:
            _expect_complete(files.path, names, stem, schemes)
        if f"{stem}weight_packed" in names:
            tensors = tuple(stem + part for part in _PACKED if stem + part in names)
            found[f"{stem}weight"] = PackedMatrix(files, stem, tensors, ignored, _group_sizes(schemes))
        elif f"{stem}weight" in names:
            found[f"{stem}weight"] = _plain(files, stem, schemes, tuple(stem + part for part in _PLAIN if stem + part in names), ignored)
    return found


def _expect_complete(path: Path, names: Set[str], stem: str, schemes: Sequence[Mapping[str, Any]]) -> None:
    """Raises CheckpointError where every scheme of the config asks for a tensor that is missing."""
    asymmetric = [scheme.get("symmetric") is False for scheme in schemes]
    ordered = [scheme.get("actorder") in ("group", True) for scheme in schemes]  # compressed-tensors reads True as "group"
    for part, asked in (("weight_zero_point", asymmetric), ("weight_g_idx", ordered)):
        if asked and all(asked) and stem + part not in names:
            raise CheckpointError(f"{path} has {stem}weight_scale without {part} — it is incomplete, download it again")


def _group_sizes(schemes: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The sizes of groups that the config names. compressed-tensors refuses inputs that they do not divide."""
    return tuple(size for scheme in schemes if (size := scheme.get("group_size") or 0) > 0)


def _plain(
    files: Tensors, stem: str, schemes: Sequence[Mapping[str, Any]], tensors: tuple[str, ...], ignored: tuple[str, ...]
) -> PlainMatrix:
    kind = files.stored_type(f"{stem}weight")
    if kind not in (np.dtype(np.int8), np.dtype(float8_e4m3fn)):
        raise UnsupportedModel(
            f"{files.path}: {stem}weight is {kind} and has a scale, so it was never compressed — save it with save_compressed=True"
        )
    zero = f"{stem}weight_zero_point"
    integers = [scheme.get("num_bits") for scheme in schemes if scheme.get("type", "int") == "int"]
    bits = 4 if set(integers) == {4} else 8
    blocks = next((_sizes(scheme["block_structure"]) for scheme in schemes if scheme.get("block_structure")), None)
    stored = (f"{stem}weight", f"{stem}weight_scale", zero if zero in tensors else None)
    return PlainMatrix(files, *stored, tensors + ignored, blocks, bits, _group_sizes(schemes))


def _sizes(block: Any) -> Sequence[int]:
    """[128, 128], or "128x128" in old files."""
    return [int(size) for size in (block.split("x") if isinstance(block, str) else block)]


@dataclass(frozen=True)
class PackedMatrix:
    """One matrix in weight_packed. ``ignored``: scales of its activations. ``sizes``: of groups in the config, none if any may be."""

    files: Tensors
    stem: str
    parts: tuple[str, ...]
    ignored: tuple[str, ...]
    sizes: tuple[int, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.parts + self.ignored

    def _part(self, part: str) -> np.ndarray:
        return self.files.stored(self.stem + part)

    @cached_property
    def shape(self) -> tuple[int, int]:
        if f"{self.stem}weight_shape" not in self.parts:
            raise CheckpointError(f"{self.files.path} has no {self.stem}weight_shape — it is incomplete, download it again")
        outputs, inputs = self._part("weight_shape").astype(np.int64).tolist()
        return int(outputs), int(inputs)

    @cached_property
    def bits(self) -> int:
        (outputs, inputs), packed = self.shape, self.files.shape(f"{self.stem}weight_packed")
        for bits in (4, 8):
            if packed == (outputs, -(-inputs * bits // 32)):
                return bits
        raise UnsupportedModel(
            f"{self.stem}weight_packed {list(packed)} is not a weight {[outputs, inputs]} of 4 or 8 bits, which are read — "
            "export from another checkpoint of the model"
        )

    @cached_property
    def form(self) -> Form:
        (outputs, inputs), scales, name = self.shape, self.files.shape(f"{self.stem}weight_scale"), f"{self.stem}weight"
        groups, order = scales[1] if len(scales) == 2 else 1, None
        if math.prod(scales) not in (1, outputs * groups):
            raise CheckpointError(f"{name} has scales {list(scales)} for {outputs} rows — the checkpoint is damaged, download it again")
        size = group_size(inputs, groups, None, name)
        if groups > 1 and self.sizes and size not in self.sizes:
            raise CheckpointError(
                f"{name} has {groups} groups of scales for {inputs} inputs, the config names groups of {self.sizes[0]} — the checkpoint is "
                "damaged, download it again"
            )
        g_idx = f"{self.stem}weight_g_idx"
        if g_idx in self.parts and (numbers := self._part("weight_g_idx")).min() >= 0:  # -1: not in use
            order = order_of_groups(numbers, groups, size, name)
        zeros = f"{self.stem}weight_zero_point" in self.parts and bool(self._zeros(0, outputs, groups).any())
        kind, scale_type = INT4 if self.bits == 4 else INT8, self.files.stored_type(f"{self.stem}weight_scale")
        return Form(kind, size, zeros, scale_type, None if order is None else order.tobytes())

    def _zeros(self, start: int, stop: int, groups: int) -> np.ndarray:
        """int8 [rows, groups]. Packed along the outputs, or plain in checkpoints of early versions."""
        stored = self._part("weight_zero_point")
        if stored.dtype != np.int32:
            plain = np.broadcast_to(stored.reshape(-1, groups), (self.shape[0], groups))
            return np.array(plain[start:stop]).astype(np.int8)
        each = 32 // self.bits
        first = start // each
        words = stored[first : -(-stop // each)]
        return signed(np.ascontiguousarray(unpacked(words, self.bits, 0)[start - first * each : stop - first * each]), self.bits)

    def rows(self, start: int, stop: int) -> StoredIntegers:
        form, inputs = self.form, self.shape[1]
        values = unpacked(self.files.stored(f"{self.stem}weight_packed", start, stop), self.bits, 1)[:, :inputs]
        if (order := form.permutation) is not None:
            values = values[:, order]
        groups = -(-inputs // form.block)
        scales = self._part("weight_scale").reshape(-1, groups)
        rows = np.array(np.broadcast_to(scales, (self.shape[0], groups))[start:stop]).astype(np.float32)
        zeros = self._zeros(start, stop, groups) if form.zero_points else None
        return StoredIntegers(signed(np.ascontiguousarray(values), self.bits), rows, zeros, form.block)
