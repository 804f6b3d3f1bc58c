"""Quantized Hugging Face directories: what is read, left out, refused, and told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.errors import CheckpointError, UnsupportedModel
from tests.support.checkpoints import refused
from tests.support.exporting import Run
from tests.support.quantized_models import SCHEMES, is_linear, write_quantized
from tests.support.tiny import tiny_model

LAYER = "model.layers.0.mlp.up_proj."


def written(directory: Path, scheme: str) -> dict[str, np.ndarray]:
    """Writes a quantized directory; returns the weights that it stands for."""
    model = tiny_model("llama", tied=False, num_hidden_layers=2)
    write_quantized(directory, model, scheme)
    return {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}


def changed(directory: Path, more: Mapping[str, np.ndarray], without: str | None = None) -> None:
    file = directory / "model.safetensors"
    tensors = {name: array for name, array in load_file(file).items() if name != without}
    save_file({**tensors, **more}, file)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_directory_is_read_as_the_weights_that_it_stands_for(tmp_path: Path, scheme: str) -> None:
    expected = written(tmp_path, scheme)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for name, weight in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), weight)
        np.testing.assert_array_equal(checkpoint.read(name, 3, 9), weight[3:9])
        assert (checkpoint.form(name) is not None) == (is_linear(name) and not (scheme == "mixed" and "v_proj" in name))


def test_scales_of_activations_and_of_the_cache_and_biases_of_zeros_are_left_out(tmp_path: Path) -> None:
    expected = written(tmp_path, "int8 rows")
    scale = np.ones(1, np.float32)
    attention = "model.layers.0.self_attn."
    changed(tmp_path, {f"{LAYER}input_scale": scale, f"{attention}k_scale": scale, f"{attention}v_proj.output_scale": scale,
                       f"{LAYER}bias": np.zeros(96, np.float16)})  # fmt: skip
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read(f"{LAYER}weight"), expected[f"{LAYER}weight"])
    assert checkpoint.notes == (f"{LAYER}bias (1 tensors) is left out: it is zero",)


@pytest.mark.parametrize(
    ("name", "array"), [("bias", np.ones(96, np.float16)), ("weight_scale_2", np.ones(1)), ("lora_A.weight", np.ones(1))]
)
def test_a_tensor_that_no_reader_knows_is_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    written(tmp_path, "int8 rows")
    changed(tmp_path, {LAYER + name: array})
    with pytest.raises(UnsupportedModel, match=f"{LAYER}{name}"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "part"), [("gptq", "qweight"), ("awq", "scales"), ("int8 rows", "weight_scale"), ("int4 groups", "weight_packed")]
)
def test_a_matrix_without_a_part_is_refused(tmp_path: Path, scheme: str, part: str) -> None:
    written(tmp_path, scheme)
    changed(tmp_path, {}, without=LAYER + part)
    with pytest.raises((CheckpointError, UnsupportedModel), match=LAYER):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    "method", ["bitsandbytes", "hqq", "eetq", "quanto", "torchao", "mxfp4", "aqlm", "vptq", "auto-round", "quark", "bitnet"]
)
def test_other_methods_are_refused_by_name(tmp_path: Path, run: Run, method: str) -> None:
    written(tmp_path / "source", "gptq")
    config = tmp_path / "source" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": method}}))
    for more in ([], ["--dry-run"]):
        ended = run("--weights", str(tmp_path / "source"), "--out", str(tmp_path / "e"), *more)
        assert ended.code == 1
        assert f"quantized with {method!r}, which cannot be read — readable: awq, compressed-tensors" in ended.err
        assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("scheme", "more", "line"),
    [
        ("awq", ["--precision", "int4"], "14 matrices of 4 bits, groups of 32, zero points: kept as they are"),
        ("gptq desc_act", ["--precision", "int8"], "14 matrices of 4 bits, groups of 32, zero points, inputs reordered: kept as they are"),
        ("int8 rows", ["--precision", "int8"], "14 matrices of 8 bits, one scale a row: kept as they are"),
        ("int8 rows", ["--precision", "int8", "--requantize"], "one scale a row: rounded again, because --requantize asks for it"),
        ("fp8 rows", ["--precision", "int8"], "14 matrices of fp8, one scale a row: rounded again, because the checkpoint has fp8"),
        ("awq", [], "groups of 32, zero points: dequantized"),
    ],
)
def test_an_export_says_what_becomes_of_stored_values(tmp_path: Path, run: Run, scheme: str, more: list[str], line: str) -> None:
    written(tmp_path / "source", scheme)
    arguments = ["--weights", str(tmp_path / "source"), "--out", str(tmp_path / "e"), "--name", "e", "--max-context", "64", *more]
    planned = run(*arguments, "--dry-run")
    assert line in planned.out
    done = run(*arguments)
    assert (done.code, line in done.err) == (0, True)
    names = {each.name for each in onnx.load(tmp_path / "e" / "e" / "target.onnx", load_external_data=False).graph.initializer}
    assert ("layers.0.down.zero" in names) == ("zero points" in line and "kept" in line)
    size = (tmp_path / "e" / "e" / "target.data").stat().st_size
    assert f"{size / 2**20:,.0f} MiB of weights" in planned.out


SCHEME = {"num_bits": 8, "type": "int"}


@pytest.mark.parametrize(
    ("scheme", "key", "value"),
    [
        *(("gptq", key, "4") for key in ("bits", "group_size", "desc_act")),
        ("gptq", "checkpoint_format", 2),
        ("awq", "version", 1),
        ("awq", "zero_point", "true"),
        *(("fp8 blocks", "weight_block_size", value) for value in (128, [32], [0, 32], [32.0, 32], "32", "axb")),
        *(("int8 rows", "config_groups", value) for value in ([1], "group", {"group_0": 3}, {"group_0": {"weights": [8]}})),
        *(("int8 rows", "config_groups", {"g": {"weights": {**SCHEME, key: value}}})
          for key, value in (("num_bits", "8"), ("group_size", 32.5), ("block_structure", "128"), ("symmetric", "no"), ("type", 8))),
        ("int8 rows", "sparsity_config", "dense"),
    ],
)  # fmt: skip
def test_a_setting_of_another_type_is_named(tmp_path: Path, scheme: str, key: str, value: object) -> None:
    written(tmp_path, scheme)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused(rf"^quantization_config in {tmp_path}/config.json has {key}[\w.]* = .*, not .* — download it again$"):
        HuggingFaceCheckpoint(tmp_path)
