"""GGUF's types of tensors against their definitions in ggml, written out here number by number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from export.checkpoints.fetch import open_checkpoint
from export.errors import UnsupportedModel
from tests.support.checkpoints import refused
from tests.support.tiny import tiny_model, write_gguf

KINDS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
SHAPES = {"model.layers.0.mlp.up_proj.weight": (96, 256), "model.layers.0.self_attn.q_proj.weight": (256, 256)}
SCALES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 numbers of a block begin."""


def half(block: bytes, offset: int) -> np.float32:
    return np.float32(np.frombuffer(block, np.float16, 1, offset)[0])


def scale_and_min(scales: bytes, group: int) -> tuple[int, int]:
    """get_scale_min_k4: eight pairs of six bits in twelve bytes."""
    if group < 4:
        return scales[group] & 63, scales[group + 4] & 63
    return (scales[group + 4] & 15) | (scales[group - 4] >> 6) << 4, (scales[group + 4] >> 4) | (scales[group] >> 6) << 4


def by_definition(kind: str, block: bytes) -> list[np.float32]:
    """The numbers of one block, as dequantize_row_* of ggml-quants.c computes them."""
    if kind == "F16":
        return [half(block, 0)]
    if kind == "BF16":
        return [np.frombuffer(b"\0\0" + block, np.float32)[0]]
    if kind == "Q8_0":
        return [np.float32(q) * half(block, 0) for q in np.frombuffer(block, np.int8, 32, 2)]
    if kind == "Q4_0":
        nibbles = [q & 15 for q in block[2:]] + [q >> 4 for q in block[2:]]
        return [np.float32(q - 8) * half(block, 0) for q in nibbles]
    if kind == "Q4_1":
        nibbles = [q & 15 for q in block[4:]] + [q >> 4 for q in block[4:]]
        return [np.float32(q) * half(block, 0) + half(block, 2) for q in nibbles]
    return q6_k(block) if kind == "Q6_K" else q4_k_or_q5_k(kind, block)


def q4_k_or_q5_k(kind: str, block: bytes) -> list[np.float32]:
    """Groups of 32 numbers; a pair of groups shares 32 bytes. Q5_K has a fifth bit in 32 bytes of its own, one bit a group."""
    whole, high = (block[16:], bytes(32)) if kind == "Q4_K" else (block[48:], block[16:48])
    numbers = []
    for group in range(8):
        scale, low = scale_and_min(block[4:16], group)
        step, offset = half(block, 0) * np.float32(scale), half(block, 2) * np.float32(low)
        for index in range(32):
            nibble = whole[32 * (group // 2) + index]
            level = (nibble >> 4 if group % 2 else nibble & 15) + 16 * (high[index] >> group & 1)
            numbers.append(step * np.float32(level) - offset)
    return numbers


def q6_k(block: bytes) -> list[np.float32]:
    """Lower four bits in 128 bytes, upper two in 64, one scale for 16 numbers."""
    scales, numbers = np.frombuffer(block, np.int8, 16, 192), []
    for index in range(256):
        half_block, place = divmod(index, 128)
        quarter, column = divmod(place, 32)
        low = block[64 * half_block + column + 32 * (quarter % 2)]
        low = low >> 4 if quarter >= 2 else low & 15
        high = block[128 + 32 * half_block + column] >> 2 * quarter & 3
        step = half(block, 208) * np.float32(scales[8 * half_block + place // 16])
        numbers.append(step * np.float32((low | high << 4) - 32))
    return numbers


def random_rows(kind: str, shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random bytes of a tensor, as the gguf package takes them, and the numbers that they stand for."""
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (shape[0] * shape[1] // elements, size), np.uint8)
    if kind in ("F16", "BF16"):
        numbers = random.standard_normal(shape, np.float32)
        exact = (numbers.astype(np.float16).view(np.uint16) if kind == "F16" else numbers.view(np.uint32) >> 16).astype(np.uint16)
        blocks = exact.reshape(-1, 1).view(np.uint8)
    for offset in SCALES.get(kind, ()):
        blocks[:, offset : offset + 2] = (random.standard_normal((len(blocks), 1)) * 0.01).astype(np.float16).view(np.uint8)
    values = np.array([by_definition(kind, block.tobytes()) for block in blocks], np.float32).reshape(shape)
    raw = blocks.reshape(shape[0], -1)
    return (raw.view(np.float16) if kind == "F16" else raw), values


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_a_type_are_what_ggml_says(tmp_path: Path, kind: str) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model(num_hidden_layers=1, **sizes)
    made = {name: random_rows(kind, shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    write_gguf(tmp_path / "model.gguf", model, raw={name: (GGMLQuantizationType[kind], raw) for name, (raw, _) in made.items()})
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for name, (_, values) in made.items():
        expected = values
        if "q_proj" in name:  # rows of a head: llama.cpp turns neighbours, Hugging Face the two halves
            expected = values.reshape(4, 32, 2, 256).transpose(0, 2, 1, 3).reshape(256, 256)
        np.testing.assert_array_equal(checkpoint.read(name), expected)
        np.testing.assert_array_equal(checkpoint.read(name, 17, 42), expected[17:42])
        np.testing.assert_array_equal(checkpoint.read(name, 90), expected[90:])


def test_type_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    raw = (GGMLQuantizationType.Q8_1, np.zeros((96, 2 * 40), np.uint8))
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), raw={name: raw})
    with refused("stores blk.0.ffn_up.weight as Q8_1, which cannot be read — take another quantization", UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")
