"""Rotary settings and tables, compared with transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from export.checkpoints.arch import arch_from_config
from export.errors import UnsupportedModel

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 128256}

SCALINGS: Mapping[str, Mapping[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "llama3-small": {**LLAMA3, "rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 256},
    "llama3-without-length": {key: value for key, value in {"rope_type": "llama3", **LLAMA3}.items() if not key.startswith("original")},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn-without-length": {"rope_type": "yarn", "factor": 4.0},
    "yarn-tuned": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 1.25,
        "beta_fast": 24,
        "beta_slow": 2,
    },
    "yarn-mscale": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn-untruncated": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "truncate": False},
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("theta", "head_dim"), [(10000.0, 64), (500000.0, 128)])
def test_rotary_tables_equal_transformers(name: str, theta: float, head_dim: int) -> None:
    sizes = {**SIZES, "head_dim": head_dim, "max_position_embeddings": 4096}
    config = AutoConfig.for_model("llama", **sizes, rope_parameters={"rope_theta": theta, **SCALINGS[name]})
    theirs = LlamaRotaryEmbedding(config)
    rope = arch_from_config({**sizes, "model_type": "llama", "rope_parameters": {"rope_theta": theta, **SCALINGS[name]}}).rope
    cos, sin = rope.tables(head_dim, 4096)
    assert (cos.dtype, cos.shape, sin.shape) == (np.float32, (4096, head_dim // 2), (4096, head_dim // 2))

    near = torch.arange(48)[None]
    expected_cos, expected_sin = (table[0, :, : head_dim // 2].numpy() for table in theirs(torch.zeros(1), near))
    np.testing.assert_allclose(cos[:48], expected_cos, rtol=0, atol=1e-5)
    np.testing.assert_allclose(sin[:48], expected_sin, rtol=0, atol=1e-5)
    # transformers rounds the angles to float32, an error of up to 2e-4 at position 4095; we do not. So compare large positions
    # with angles computed from their frequencies.
    angles = np.arange(4096)[:, None] * theirs.inv_freq.double().numpy()
    allowed = 1e-6 * np.arange(1, 4097)[:, None]
    assert (np.abs(cos - np.cos(angles) * theirs.attention_scaling) <= allowed).all()
    assert (np.abs(sin - np.sin(angles) * theirs.attention_scaling) <= allowed).all()


_LLAMA3 = {"rope_type": "llama3", **LLAMA3}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
ODD: Mapping[str, Mapping[str, Any]] = {
    "both keys": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_scaling": _LLAMA3},
    "both keys and the base": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_scaling": _YARN, "rope_theta": 5e5},
    "original length at the top": {"rope_scaling": _YARN, "original_max_position_embeddings": 512, "rope_theta": 5e5},
    "original length only at the top": {"rope_scaling": {"type": "yarn", "factor": 2.0}, "original_max_position_embeddings": 512},
    "null factor": {"rope_scaling": {**_YARN, "factor": None}, "rope_theta": 1e4},
    "short original length": {"rope_scaling": {**_YARN, "original_max_position_embeddings": 2}, "rope_theta": 1e4},
}


@pytest.mark.parametrize("name", ODD)
def test_keys_that_contradict_each_other_mean_what_transformers_reads(tmp_path: Path, name: str) -> None:
    config = {**SIZES, "model_type": "llama", "max_position_embeddings": 4096, **ODD[name]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    expected = np.arange(9)[:, None] * theirs.inv_freq.double().numpy()
    cos, sin = arch_from_config(config).rope.tables(128, 9)
    np.testing.assert_allclose(cos, np.cos(expected) * theirs.attention_scaling, rtol=0, atol=1e-5)
    np.testing.assert_allclose(sin, np.sin(expected) * theirs.attention_scaling, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nested", [{"full_attention": {"rope_type": "linear", "factor": 3.0}}, {"sliding_attention": None}])
def test_settings_by_kind_of_layer_are_refused(nested: Mapping[str, Any]) -> None:
    config = {**SIZES, "model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"], "rope_parameters": nested}
    with pytest.raises(UnsupportedModel, match=rf"each kind of layer \({next(iter(nested))}\), which is not supported — "):
        arch_from_config(config)
