"""GPTQ (AutoGPTQ, GPTQModel, optimum): each matrix as qweight, qzeros, scales and g_idx, packed along the inputs.

qweight[i / 8, o] holds input i in the bits from 4 (i mod 8), qzeros[g, o / 8] the zero point of output o; the weight is
(q - zero) * scale of the input's group. The usual format "gptq" stores zero - 1, "gptq_v2" stores zero. GPTQModel adds the one to whole
words (convert_gptq_v1_to_v2_format_module), so a carry runs into the next zero point, exactly as its own subtraction borrowed from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from .input_groups import DEFAULT_SIZE, group_size, order_of_groups
from .packing import signed, unpacked, word_columns
from .stored import INT4, INT8, Form, StoredIntegers, Tensors, whole

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_ONES = {4: np.uint32(0x11111111), 8: np.uint32(0x01010101)}


def check(config: Mapping[str, Any], source: str) -> None:
    """Raises UnsupportedModel for a format that is not read."""
    kind = "marlin" if config.get("is_marlin_format") else _format(config)
    if kind not in ("gptq", "gptq_v2"):
        raise UnsupportedModel(f"{source} names GPTQ's format {kind!r} — export from a checkpoint in the format gptq or gptq_v2")


def _format(config: Mapping[str, Any]) -> str:
    return str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()


def find(files: Tensors, config: Mapping[str, Any]) -> dict[str, GptqMatrix]:
    """Usual name -> matrix, for every module that has a qweight. Raises CheckpointError if one is incomplete."""
    names, found = set(files.names()), {}
    for name in sorted(names):
        if name.endswith(".qweight"):
            stem = name.removesuffix("qweight")
            needed = PARTS if config.get("desc_act") and _groups(files, stem) > 1 else PARTS[:3]
            if missing := [part for part in needed if stem + part not in names]:
                raise CheckpointError(f"{files.path} has {name} without {', '.join(missing)} — it is incomplete, download it again")
            tensors = tuple(stem + part for part in PARTS if stem + part in names)
            bits, one_less = _bits(files, stem, tensors, config), _format(config) == "gptq"
            found[f"{stem}weight"] = GptqMatrix(files, stem, tensors, bits, config.get("group_size", DEFAULT_SIZE), one_less)
    return found


def _groups(files: Tensors, stem: str) -> int:
    """Of one alone, g_idx says nothing."""
    return files.shape(f"{stem}scales")[0] if f"{stem}scales" in files.names() else 1


def _bits(files: Tensors, stem: str, tensors: Sequence[str], config: Mapping[str, Any]) -> int:
    """From the tensors where they tell, because modules may differ. Raises UnsupportedModel unless it is 4 or 8."""
    bits = config.get("bits")
    if f"{stem}g_idx" in tensors:
        bits = 32 * files.shape(f"{stem}qweight")[0] // max(1, files.shape(f"{stem}g_idx")[0])
    if bits not in (4, 8):
        raise UnsupportedModel(f"{stem}qweight has {bits} bits, GPTQ is read with 4 and 8 — export from another checkpoint of the model")
    return int(bits)


@dataclass(frozen=True)
class GptqMatrix:
    """One matrix. ``asked``: the config's group size; ``one_less``: zero points are stored as one less."""

    files: Tensors
    stem: str
    tensors: tuple[str, ...]
    bits: int
    asked: int | None
    one_less: bool

    def _part(self, part: str) -> np.ndarray:
        return whole(self.files.stored, self.stem + part)

    @cached_property
    def shape(self) -> tuple[int, int]:
        words, outputs = self.files.shape(f"{self.stem}qweight")
        return int(outputs), int(words) * 32 // self.bits

    @cached_property
    def form(self) -> Form:
        outputs, inputs = self.shape
        scales, name = self.files.shape(f"{self.stem}scales"), self.stem.rstrip(".")
        groups = scales[0]
        if scales != (groups, outputs) or self.files.shape(f"{self.stem}qzeros") != (groups, -(-outputs * self.bits // 32)):
            raise CheckpointError(f"{name} has scales or zero points of another shape than its weight — it is damaged, download it again")
        numbered = f"{self.stem}g_idx" in self.tensors
        size, order = group_size(inputs, groups, self.asked, name, numbered=numbered), None
        if numbered:
            order = order_of_groups(self._part("g_idx"), groups, size, name)
        zeros = bool(self._zeros(0, outputs).any())
        kind, scale_type = INT4 if self.bits == 4 else INT8, self.files.stored_type(f"{self.stem}scales")
        return Form(kind, size, zeros, scale_type, None if order is None else order.tobytes())

    def _zeros(self, start: int, stop: int) -> np.ndarray:
        """int8 [rows, groups], counted from the middle of the range."""
        words = self._part("qzeros")
        if self.one_less:
            words = (words.view(np.uint32) + _ONES[self.bits]).view(np.int32)
        return np.ascontiguousarray(signed(word_columns(words, self.bits, start, stop), self.bits).T)

    def rows(self, start: int, stop: int) -> StoredIntegers:
        order = self.form.permutation
        values = unpacked(self._part("qweight")[:, start:stop], self.bits, 0)
        if order is not None:
            values = values[order]
        values = signed(np.ascontiguousarray(values.T), self.bits)
        scales = self._part("scales")[:, start:stop].astype(np.float32).T
        zeros = self._zeros(start, stop) if self.form.zero_points else None
        return StoredIntegers(values, np.ascontiguousarray(scales), zeros, self.form.block)
