"""Integers and scales of GGUF blocks, against llama.cpp's own Python package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from export.checkpoints.gguf import GgufCheckpoint
from export.checkpoints.quantized.ggml import FORMS, integers
from tests.support.tiny import tiny_model, write_gguf


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_integers_times_scales_are_what_gguf_dequantizes(kind: str) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    stored = gguf.GGMLQuantizationType[kind]
    raw = gguf.quants.quantize(weight, stored)
    found = integers(raw, kind)
    assert (found.values.min(), found.values.max()) == ((-8, 7) if kind == "Q4_0" else (-127, 127))
    np.testing.assert_array_equal(found.dequantized(), gguf.quants.dequantize(raw, stored))


def test_rows_of_queries_and_keys_are_in_the_models_order(tmp_path: Path) -> None:
    model, names = tiny_model("llama"), [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    write_gguf(tmp_path / "model.gguf", model, quantized=names)
    checkpoint = GgufCheckpoint(tmp_path / "model.gguf")
    for name in names:
        assert checkpoint.form(name) == FORMS["Q8_0"]
        np.testing.assert_array_equal(checkpoint.integers(name, 3, 30).dequantized(), checkpoint.read(name, 3, 30))
    assert checkpoint.form("model.layers.0.mlp.up_proj.weight") is None
