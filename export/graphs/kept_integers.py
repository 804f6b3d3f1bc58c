"""Which matrices of a quantized checkpoint keep their values in a graph, and which are rounded again because the graph cannot hold them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..checkpoints.arch import Arch
from ..checkpoints.quantized.stored import BITS, FP8, INT8, Form, HasIntegers
from ..checkpoints.safetensors import Weights
from ..checkpoints.target_tensors import EMBEDDING, HEAD
from .builder import FLOAT8
from .precision import Precision
from .weights import BLOCK

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
"""Inputs that share a scale in ONNX Runtime's MatMulNBits: a power of two between these. Its last block may be shorter."""
ROW_BLOCK = 128  # where whole rows share a scale, so that any would do


@dataclass(frozen=True)
class Piece:
    """Consecutive parts of a joined matrix that are stored alike. ``form``: None if they are rounded from float32."""

    parts: tuple[str, ...]
    outputs: int
    form: Form | None


def pieces(source: Weights, parts: Sequence[str], kind: int | None, static: bool) -> list[Piece]:
    """The parts of one product in a graph whose matrices are to be stored in the ONNX type ``kind``. ``static``: for TensorRT."""
    if not isinstance(source, HasIntegers):
        return []
    found: list[Piece] = []
    for form, same in groupby(parts, lambda part: _kept(source, part, kind, static)):
        names = tuple(same)
        found.append(Piece(names, sum(source.shape(name)[0] for name in names), form))
    return found


def _kept(source: HasIntegers, part: str, kind: int | None, static: bool) -> Form | None:
    form = source.form(part)
    return form if form is not None and not obstacle(form, source.shape(part)[1], kind, static) else None


def obstacle(form: Form, inputs: int, kind: int | None, static: bool) -> str:
    """Why a graph cannot hold the stored values; empty if it can."""
    if kind is None:
        return "this precision has floating-point weights"
    if (form.kind == FP8) != (kind == FLOAT8):
        return f"the checkpoint has {form.kind}"
    if kind == FLOAT8:
        return "" if form.block >= inputs else "TensorRT's products have one scale a row, the checkpoint has several"
    if static:
        if form.zero_points:
            return "TensorRT's products have no zero points"
        return "" if math.gcd(form.block, inputs) % BLOCK == 0 else f"groups of {form.block} do not divide into {BLOCK}"
    if is_whole_rows(form, inputs) or product_block(form, inputs):
        return ""
    return f"groups of {form.block} inputs do not divide into {SMALLEST_BLOCK}"


def is_whole_rows(form: Form, inputs: int) -> bool:
    """Whether a matrix goes into the integer products of int8, which have one scale a row."""
    return form.kind == INT8 and form.block >= inputs and not form.zero_points


def product_block(form: Form, inputs: int) -> int:
    """Block size of a MatMulNBits that holds the matrix: the stored one, else the largest part of it; 0 if there is none."""
    if form.block >= inputs:
        return ROW_BLOCK
    part = math.gcd(form.block, LARGEST_BLOCK)
    return part if part >= SMALLEST_BLOCK else 0


def notes(source: Weights, arch: Arch, precision: Precision, static: bool, requantize: bool) -> Iterator[str]:
    """A line for every way in which matrices are stored quantized, which says what becomes of their values."""
    if not isinstance(source, HasIntegers):
        return
    counts: Counter[tuple[str, str]] = Counter()
    for name, kind in _quantized(arch, precision):
        if (form := source.form(name)) is not None:
            inputs, is_table = source.shape(name)[1], name == EMBEDDING and not static
            counts[described(form, inputs), _fate(form, inputs, kind, static, requantize, is_table)] += 1
    for (form_text, fate), count in counts.items():
        yield f"{count} matrices of {form_text}: {fate}"


def keeps_integers(source: Weights, arch: Arch, precision: Precision, static: bool) -> bool:
    """Whether a graph keeps any of a checkpoint's integers. ``static``: for TensorRT."""
    return isinstance(source, HasIntegers) and any(
        name != EMBEDDING and _kept(source, name, kind, static) for name, kind in _quantized(arch, precision)
    )


def _quantized(arch: Arch, precision: Precision) -> Iterator[tuple[str, int | None]]:
    """The checkpoint's matrices, each with the ONNX type that it is to be stored in."""
    for layer in range(arch.layers):
        for part in _linears(arch):
            yield f"model.layers.{layer}.{part}.weight", precision.matrix
    yield EMBEDDING, precision.head
    if not arch.tied_head:
        yield HEAD, precision.head


def _linears(arch: Arch) -> Iterator[str]:
    for parts, _, _ in arch.linears.values():
        yield from parts


def _fate(form: Form, inputs: int, kind: int | None, static: bool, requantize: bool, is_table: bool) -> str:
    if kind is None:
        return "dequantized"
    reason = "--requantize asks for it" if requantize else obstacle(form, inputs, kind, static)
    if is_table and not reason:
        reason = "it is the table of embeddings, with one scale a row"
    return f"rounded again, because {reason}" if reason else "kept as they are"


def described(form: Form, inputs: int) -> str:
    """For messages: "int4, groups of 128, zero points"."""
    groups = "one scale a row" if form.block >= inputs else f"groups of {form.block}"
    kind = f"{BITS[form.kind]} bits" if form.kind != FP8 else "fp8"
    return ", ".join([kind, groups, *(["zero points"] if form.zero_points else []), *(["inputs reordered"] if form.order else [])])
