"""Quantized directories whose tensors do not say what the weights are: nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from tests.support import packers
from tests.support.checkpoints import refused
from tests.support.quantized_models import is_linear, quantize, write_quantized, write_safetensors
from tests.support.tiny import tiny_model

LAYER = "model.layers.1.mlp.down_proj."


def configure(directory: Path, **settings: Any) -> None:
    """Changes quantization_config; None takes a key out."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    changed = {**config["quantization_config"], **settings}
    config["quantization_config"] = {key: value for key, value in changed.items() if value is not None}
    file.write_text(json.dumps(config))


def scheme_of(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", **weights}}}}


def written(directory: Path, scheme: str, without: str = "", group: int = 32, **more: np.ndarray) -> None:
    write_quantized(directory, tiny_model("llama", num_hidden_layers=2), scheme, group=group)
    tensors = load_file(directory / "model.safetensors")
    tensors.pop(LAYER + without, None)
    save_file({**tensors, **{LAYER + part: torch.from_numpy(array) for part, array in more.items()}}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("scheme", "part", "settings"),
    [
        ("gptq desc_act", "g_idx", {}),
        ("awq", "qzeros", {}),
        ("awq", "qzeros", {"zero_point": None}),  # true by default
        ("int8 rows with zero points", "weight_zero_point", scheme_of(symmetric=False)),
        ("int4 groups", "weight_g_idx", scheme_of(actorder="group", group_size=32)),
    ],
)
def test_a_tensor_that_the_settings_ask_for_is_missing(tmp_path: Path, scheme: str, part: str, settings: dict[str, Any]) -> None:
    written(tmp_path, scheme, without=part)
    configure(tmp_path, **settings)
    with refused(rf"down_proj.* without {part} — it is incomplete, download it again"):
        HuggingFaceCheckpoint(tmp_path)


def test_zero_points_that_the_settings_exclude_may_be_missing(tmp_path: Path) -> None:
    written(tmp_path, "awq", without="qzeros")
    configure(tmp_path, zero_point=False)
    assert HuggingFaceCheckpoint(tmp_path).shape(f"{LAYER}weight") == (64, 96)


@pytest.mark.parametrize("scheme", ["gptq", "awq", "int4 groups"])
def test_an_unquantized_weight_beside_the_packed_one_is_refused(tmp_path: Path, scheme: str) -> None:
    written(tmp_path, scheme, weight=np.ones((64, 96), np.float32))
    with refused(rf"has both {LAYER}weight and {LAYER}\w*weight\w* — download the checkpoint again"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize("scheme", ["int4 groups", "int8 groups"])
def test_groups_that_do_not_divide_the_inputs_are_refused_as_compressed_tensors_does(tmp_path: Path, scheme: str) -> None:
    """Two groups of 64 for 96 inputs, which were read as two of 48."""
    written(tmp_path, scheme, group=64)
    with refused(r"down_proj.weight has .* — the checkpoint is damaged, download it again"):
        HuggingFaceCheckpoint(tmp_path).form(f"{LAYER}weight")


@pytest.mark.parametrize("scheme", ["gptq", "awq"])
@pytest.mark.parametrize("settings", [{"group_size": 48}, {"group_size": None}])
def test_another_group_size_than_the_settings_say_is_refused_without_group_numbers(
    tmp_path: Path, scheme: str, settings: dict[str, Any]
) -> None:
    written(tmp_path, scheme, without="g_idx", group=32)
    configure(tmp_path, **settings)
    with refused(r"down_proj has 3 groups of scales for 96 inputs — "):
        HuggingFaceCheckpoint(tmp_path).form(f"{LAYER}weight")


def float8_directory(directory: Path, rows: int, **settings: Any) -> dict[str, np.ndarray]:
    """A model of 192 numbers with float8 weights by blocks; returns what they stand for."""
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=192, intermediate_size=192, num_attention_heads=12)

    def pack(name: str, weight: np.ndarray) -> packers.Packed:
        spread = weight * np.exp(np.random.default_rng(0).normal(0, 2, (len(weight), 1))).astype(np.float32)
        values, scales, dense = packers.float8(spread, rows, rows)
        return {"weight": values, "weight_scale_inv": scales}, dense

    tensors = quantize(model, pack)
    write_safetensors(directory / "model.safetensors", tensors)
    model.config.save_pretrained(directory)
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "fp8", **settings}}))
    return {name: tensor.detach().numpy() for name, tensor in model.named_parameters() if is_linear(name)}


def test_float8_blocks_are_those_of_transformers_where_the_settings_name_none(tmp_path: Path) -> None:
    expected = float8_directory(tmp_path, 128)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for name, weight in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), weight)


@pytest.mark.parametrize("settings", [{}, {"weight_block_size": [64, 128]}, {"weight_block_size": None}])
def test_float8_blocks_that_are_not_those_of_the_settings_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    float8_directory(tmp_path, 96 if settings.get("weight_block_size") else 64, **settings)
    with refused(r"proj.weight has scales .* for a weight .* — the checkpoint is damaged, download it again"):
        HuggingFaceCheckpoint(tmp_path).form("model.layers.0.mlp.down_proj.weight")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("scheme", "part"),
    [("gptq", "scales"), ("awq", "scales"), ("int4 groups", "weight_scale"), ("int8 rows", "weight_scale"),
     ("fp8 blocks", "weight_scale_inv"), ("fp8 rows", "weight")],
)  # fmt: skip
def test_numbers_that_are_not_finite_are_named_as_they_are_stored(tmp_path: Path, scheme: str, part: str, value: float) -> None:
    """Both where they are dequantized and where they are kept."""
    written(tmp_path, scheme)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[LAYER + part][1, 0] = np.nan if part == "weight" else value  # this float8 has no infinities
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for read in (checkpoint.read, checkpoint.integers):
        with refused(rf"model.safetensors has numbers in {LAYER}{part} that are not finite .*, which no --precision mends — "):
            read(f"{LAYER}weight", 0, 64)
        assert read("model.layers.0.mlp.down_proj.weight", 0, 64) is not None


def test_scales_so_large_that_weights_overflow_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "int8 rows")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{LAYER}weight_scale"] = torch.full((64, 1), 3e38)
    save_file(tensors, tmp_path / "model.safetensors")
    with refused(rf"has numbers in {LAYER}weight that are not finite: its scales are too large — take other weights"):
        HuggingFaceCheckpoint(tmp_path).read(f"{LAYER}weight")
