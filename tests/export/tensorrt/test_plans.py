"""Building plans from graphs: successes, interruptions and errors; float8 rows, and layers as wide as Llama-3-8B's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ml_dtypes import float8_e4m3fn

from export.cli import command
from export.errors import EngineBuildError
from export.graphs.weights import quantize_rows
from export.tensorrt.builder import _open_timings, build_plan
from export.tensorrt.gpu import Platform
from runtime.console import run_command
from runtime.manifest.graphs import Graph, sha256_of
from runtime.manifest.load import load_manifest
from tests.support.tiny import LLAMA3, write_tokenizer

trt = pytest.importorskip("tensorrt_rtx")


def test_float8_rows() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32) * np.logspace(-12, 4, 8, dtype=np.float32)[:, None]
    weight[3] = 0
    values, scale = quantize_rows(weight)
    assert (values.dtype, scale.dtype, scale.shape) == (float8_e4m3fn, np.float16, (8,))
    back = values.astype(np.float32) * scale.astype(np.float32)[:, None]
    assert np.isfinite(back).all()
    for row in (4, 5, 6, 7):  # scales that are not subnormal; a sixteenth is half a step of three bits
        assert np.abs(back[row] - weight[row]).max() <= np.abs(weight[row]).max() / 16
    assert (back[3] == 0).all()


@pytest.fixture
def platform() -> Platform:
    return Platform(trt, ("8.9",), None)


def one_gemm(directory: Path, operator: str = "MatMul", profiles: tuple[Mapping[str, tuple[int, int, int]], ...] = ()) -> Graph:
    """A graph of one node, as an entry of the manifest."""
    info, shape = onnx.helper.make_tensor_value_info, ("n", 4)
    domain = "" if operator == "MatMul" else "example"
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    node = onnx.helper.make_node(operator, ["x", "w"], ["y"], domain=domain)
    graph = onnx.helper.make_graph([node], "g", [info("x", 1, shape)], [info("y", 1, shape)], [weight])
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("example", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11), directory / "g.onnx")
    tensor = SimpleNamespace(dtype="float32", shape=shape)
    return Graph("g.onnx", "g.plan", profiles, {"x": tensor}, {"y": tensor})  # type: ignore[dict-item]


def test_graph_that_cannot_be_parsed(tmp_path: Path, platform: Platform) -> None:
    graph = one_gemm(tmp_path, "NoSuchOperator")
    with pytest.raises(EngineBuildError, match=r"tensorrt_rtx 1\S+ cannot read g\.onnx: .*NoSuchOperator.* — choose another --precision"):
        build_plan(tmp_path, graph, platform, None, lambda *_: None)
    (tmp_path / "g.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(EngineBuildError, match=r"cannot read g\.onnx: "):
        build_plan(tmp_path, graph, platform, None, lambda *_: None)


def test_graph_that_cannot_be_built(tmp_path: Path, platform: Platform) -> None:
    """It has a variable size and no profile."""
    with pytest.raises(EngineBuildError, match=r"cannot build g\.onnx: .*profile.* — choose another --precision") as caught:
        build_plan(tmp_path, one_gemm(tmp_path), platform, None, lambda *_: None)
    assert "\n" not in str(caught.value)


def test_tensors_must_be_those_of_the_manifest(tmp_path: Path, platform: Platform) -> None:
    stated = one_gemm(tmp_path, profiles=({"n": (1, 4, 4)},))
    other, longer = {"z": stated.inputs["x"]}, {"x": SimpleNamespace(dtype="float32", shape=("n", 5))}
    for graph, says in (
        (dataclasses.replace(stated, inputs=other), "another input x"),
        (dataclasses.replace(stated, inputs=longer), "another input x"),
        (dataclasses.replace(stated, outputs=other), "another output y"),
    ):
        with pytest.raises(EngineBuildError, match=rf"TensorRT reads g\.onnx with {says} than was written — please report it"):
            build_plan(tmp_path, graph, platform, None, lambda *_: None)


def test_building_can_be_interrupted(tmp_path: Path, platform: Platform) -> None:
    graph = one_gemm(tmp_path, profiles=({"n": (1, 4, 4)},))
    seen: list[tuple[str, int, int]] = []
    file = build_plan(tmp_path, graph, platform, None, lambda *step: seen.append(step))
    assert (file.bytes, file.sha256) == ((tmp_path / "g.plan").stat().st_size, sha256_of(tmp_path / "g.plan"))
    assert seen[0][:2] == ("g.plan", 1)
    assert seen[-1][1] == seen[-1][2]

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(tmp_path, graph, platform, None, stop)


def test_measurements_of_the_last_build_are_used_again(tmp_path: Path) -> None:
    """Only TensorRT on a GPU measures kernels; the test checks the calls it would get."""
    asked: list[Any] = []
    config = SimpleNamespace(
        create_timing_cache=lambda data: asked.append(data) or "cache",
        set_timing_cache=lambda cache, ignore_mismatch: asked.append((cache, ignore_mismatch)),
    )
    assert _open_timings(config, tmp_path / "timing.cache") == "cache"
    (tmp_path / "timing.cache").write_bytes(b"measured")
    _open_timings(config, tmp_path / "timing.cache")
    assert asked == [b"", ("cache", False), b"measured", ("cache", False)]


def write_wide(directory: Path, scale: int, layers: int = 2) -> None:
    """Two layers of Llama-3.1-8B at 1/``scale`` of its width, its vocabulary at a sixteenth, in bfloat16."""
    hidden, inner, vocab, kv = 4096 // scale, 14336 // scale, 128256 // 16, 1024 // scale
    write_tokenizer(directory)
    parts = {f"self_attn.{name}_proj": (rows, hidden) for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden))}
    parts |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    parts |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    shapes = {f"model.layers.{layer}.{part}.weight": shape for layer in range(layers) for part, shape in parts.items()}
    shapes |= {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    pattern = torch.from_numpy(np.random.default_rng(0).standard_normal(65521, np.float32) * hidden**-0.5).bfloat16()

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        size = int(np.prod(shape))
        return pattern.repeat(-(-size // len(pattern)))[:size].reshape(shape) if len(shape) == 2 else torch.ones(shape).bfloat16()

    import safetensors.torch

    safetensors.torch.save_file({name: tensor(shape) for name, shape in shapes.items()}, directory / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab}
    config |= {"num_attention_heads": 32 // scale, "num_key_value_heads": 8 // scale, "max_position_embeddings": 131072}
    rope = {"rope_theta": 500000.0, **LLAMA3, "original_max_position_embeddings": 8192}
    (directory / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5, "rope_parameters": rope}))


@pytest.mark.parametrize(("precision", "scale"), [("fp16", 1), *((precision, 4) for precision in ("fp32", "bf16", "fp8", "int8", "int4"))])
def test_llama3_8b_shaped_layers_build(tmp_path: Path, precision: str, scale: int) -> None:
    (tmp_path / "wide").mkdir()
    write_wide(tmp_path / "wide", scale)
    line = ["--weights", str(tmp_path / "wide"), "--out", str(tmp_path / "e"), "--backend", "tensorrt", "--precision", precision]
    sizes = "1,16,60" if scale == 1 else "16"
    assert run_command(command, "resps-export", [*line, "--tree-sizes", sizes, "--compute-capability", "8.9", "--max-context", "512"]) == 0
    (directory,) = (tmp_path / "e").iterdir()
    plan, data = ((directory / name).stat().st_size for name in ("target.plan", "target.data"))
    profiles = len(load_manifest(directory).graphs["target"].profiles)
    assert plan < 1.05 * data + profiles * (16 << 20)
    for path in directory.iterdir():  # pytest would keep it for three more runs
        path.unlink()
    (tmp_path / "wide" / "model.safetensors").unlink()
