"""Reading GGUF files, and the errors for damaged or unsupported ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from export.checkpoints.fetch import open_checkpoint
from export.checkpoints.gguf import GgufCheckpoint
from export.checkpoints.quantized.stored import HasIntegers
from export.errors import UnsupportedModel
from export.parity.reference import reference_logits
from runtime.decoding.tree import Tree
from tests.support.checkpoints import LAYERS, TOKENS, expect_tensors, logits_of, refused
from tests.support.tiny import reference, tiny_model, weights_of, write_gguf


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gguf_has_the_tensors_and_logits_of_the_model(tmp_path: Path, name: str, tied: bool) -> None:
    model = tiny_model(name, num_hidden_layers=LAYERS, tied=tied)
    write_gguf(tmp_path / "model.gguf", model)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    model.save_pretrained(tmp_path / "hf")
    arch = open_checkpoint(tmp_path / "hf").arch
    assert checkpoint.arch == type(arch)(**{**vars(arch), "rms_eps": checkpoint.arch.rms_eps})
    assert checkpoint.arch.rms_eps == pytest.approx(arch.rms_eps)  # a float32 in the header
    expect_tensors(checkpoint, weights_of(model))
    np.testing.assert_allclose(logits_of(checkpoint), reference(model, TOKENS)[0], rtol=0, atol=1e-4)
    with refused("has no tensor 'blk.7.attn_q.weight' — "):
        checkpoint.shape("model.layers.7.self_attn.q_proj.weight")


def test_gguf_with_biases_and_quantized_tensors(tmp_path: Path) -> None:
    model = tiny_model("llama-bias", num_hidden_layers=LAYERS, tied=False)
    quantized = ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"]
    write_gguf(tmp_path / "model.gguf", model, quantized=quantized)
    with torch.no_grad():  # the dequantized values are the model's weights
        for name, tensor in model.named_parameters():
            if name in quantized:
                raw = quants.quantize(tensor.numpy(), GGMLQuantizationType.Q8_0)
                tensor.copy_(torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType.Q8_0)))
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert (checkpoint.arch.qkv_bias, checkpoint.arch.output_bias) == (True, True)
    expect_tensors(checkpoint, weights_of(model))
    np.testing.assert_allclose(logits_of(checkpoint), reference(model, TOKENS)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_gguf_with_rope_scaling(tmp_path: Path, kind: str) -> None:
    length = {"original_max_position_embeddings": 32} if kind == "yarn" else {}
    scaling = {"rope_theta": 10000.0, "rope_type": kind, "factor": 4.0, **length}
    model = tiny_model("llama", num_hidden_layers=LAYERS, rope_parameters=scaling)
    header = {"rope__scaling__type": kind, "rope__scaling__factor": 4.0}
    write_gguf(tmp_path / "model.gguf", model, **header, **({"rope__scaling__original_context_length": 32} if length else {}))
    np.testing.assert_allclose(logits_of(open_checkpoint(tmp_path / "model.gguf")), reference(model, TOKENS)[0], rtol=0, atol=1e-4)


def renamed(directory: Path, name: bytes, other: bytes) -> Path:
    """A GGUF file in which one tensor or header field is renamed; both names have the same length."""
    file = directory / "model.gguf"
    write_gguf(file, tiny_model(num_hidden_layers=1))
    data = file.read_bytes()
    assert data.count(name) == 1
    file.write_bytes(data.replace(name, other))
    return file


def test_gguf_that_rotates_part_of_a_head_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), rope__dimension_count=8)
    with refused("partial rotary", UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")


def llama3_factors(model: Any) -> np.ndarray:
    """What llama.cpp's converter writes: the quotient of plain and scaled frequencies, in float32."""
    scaled = model.model.rotary_emb.inv_freq.numpy()
    return np.asarray(10000.0 ** -(np.arange(len(scaled)) / len(scaled)) / scaled, np.float32)


def test_precomputed_rotary_factors_are_used(tmp_path: Path) -> None:
    """llama.cpp stores the result of Llama 3.1's scaling in a tensor."""
    model = tiny_model("llama-llama3", num_hidden_layers=LAYERS)
    write_gguf(tmp_path / "model.gguf", model, tensors={"rope_freqs.weight": llama3_factors(model)})
    tokens = list(range(3, 120))  # long enough that the scaled frequencies differ
    chain = Tree.chain(tokens)
    logits = reference_logits(open_checkpoint(tmp_path / "model.gguf"), chain.tokens, chain.depth, chain.mask, range(LAYERS))
    np.testing.assert_allclose(logits, reference(model, tokens)[0], rtol=0, atol=2e-3)
    plain = reference(tiny_model("llama", num_hidden_layers=LAYERS), tokens)[0]
    assert np.abs(logits - plain).max() > 0.1


@pytest.mark.parametrize("factors", [np.ones(4, np.float32), np.zeros(8, np.float32), np.full(8, np.nan, np.float32)], ids=str)
def test_impossible_rotary_factors(tmp_path: Path, factors: np.ndarray) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), tensors={"rope_freqs.weight": factors})
    with refused("rope_freqs.weight are no rotary factors of heads of 16 — "):
        open_checkpoint(tmp_path / "model.gguf")


def test_rotary_factors_that_llama_cpp_would_not_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model("qwen2", num_hidden_layers=1), tensors={"rope_freqs.weight": np.ones(8, np.float32)})
    with refused("has rope_freqs.weight, which a qwen2 model with this header does not use — ", UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")


def test_scaling_without_a_type_is_linear(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=LAYERS, rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0})
    for key in ("rope__scaling__factor", "rope__scale_linear"):
        write_gguf(tmp_path / "model.gguf", model, **{key: 4.0})
        np.testing.assert_allclose(logits_of(open_checkpoint(tmp_path / "model.gguf")), reference(model, TOKENS)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"attention__value_length": 32}, "has llama.attention.value_length = 32, where 16 is supported"),
        ({"expert_count": 8}, "has llama.expert_count = 8, where 0 is supported"),
        ({"rope__scaling__attn_factor": 1.5}, "has rope.scaling.attn_factor = 1.5 with rope scaling 'linear'"),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 2.0}, "rope scaling 'longrope' is not supported"),
    ],
)
def test_header_of_what_the_graphs_cannot_express(tmp_path: Path, header: dict[str, Any], message: str) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), **header)
    with refused(message, UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.0.ffn_up.bias", "only models without this bias are supported"),
        ("blk.0.attn_q_norm.weight", "the weights are of another architecture than their header says"),
        ("blk.1.attn_norm.weight", "the header says 1 layers"),
        ("blk.0.ffn_gate_inp.weight", "mixtures of experts are not supported"),
        ("blk.0.attn_q.scale", "quantized in a way that the header does not say"),
        ("v.patch_embd.weight", "get the files that belong to each other"),
    ],
)
def test_every_tensor_is_used_or_named(tmp_path: Path, name: str, message: str) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), tensors={name: np.ones(64, np.float32)})
    with refused(f"has {name}, which a llama model with this header does not use — .*{message}", UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize("part", ["attn_q", "attn_output"])
def test_biases_of_some_matrices(tmp_path: Path, part: str) -> None:
    """llama.cpp reads the biases that are there."""
    model, heads = tiny_model("llama-bias", num_hidden_layers=1), "qkv" if part == "attn_q" else "o"
    kept = {name: tensor for name, tensor in weights_of(model).items() if not name.endswith("bias") or name.split(".")[-2][0] in heads}
    write_gguf(tmp_path / "model.gguf", model, weights=kept)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name not in kept:
                tensor.zero_()
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert (checkpoint.arch.qkv_bias, checkpoint.arch.output_bias) == (part == "attn_q", part != "attn_q")
    np.testing.assert_allclose(logits_of(checkpoint), reference(model, TOKENS)[0], rtol=0, atol=1e-4)


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    file, model = tmp_path / "model.gguf", tiny_model(num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = np.nan
    write_gguf(file, model)
    with refused(f"{file} has numbers in blk.0.ffn_up.weight that are not finite .*, which no --precision mends — "):
        open_checkpoint(file).read("model.layers.0.mlp.up_proj.weight")


def test_a_scale_that_is_not_finite_is_named_where_integers_are_kept(tmp_path: Path) -> None:
    file, model, name = tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), "model.layers.0.mlp.up_proj.weight"
    stored = quants.quantize(weights_of(model)[name], GGMLQuantizationType.Q8_0)
    stored[3, 34:36] = np.array([np.inf], np.float16).view(np.uint8)
    write_gguf(file, model, raw={name: (GGMLQuantizationType.Q8_0, stored)})
    checkpoint = open_checkpoint(file)
    assert isinstance(checkpoint, HasIntegers)
    with refused(f"{file} has numbers in blk.0.ffn_up.weight that are not finite"):
        checkpoint.integers(name, 0, 8)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 0.5, 0.999])
def test_truncated_gguf(tmp_path: Path, share: float) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_model(num_hidden_layers=LAYERS))
    os.truncate(file, int(file.stat().st_size * share))
    with refused(f"cannot read {file}: .* — the file is truncated or damaged"):
        open_checkpoint(file)


def test_gguf_that_lacks_a_header_field(tmp_path: Path) -> None:
    file = renamed(tmp_path, b"llama.block_count", b"llama.block_xxxxx")
    with refused("lacks the header field llama.block_count — it is not a complete llama model"):
        GgufCheckpoint(file)


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_model(num_hidden_layers=1))
    file.write_bytes(file.read_bytes().replace(b"llama", b"gemma"))
    with refused("architecture 'gemma' is not supported as GGUF — supported: llama, qwen2, qwen3", UnsupportedModel):
        open_checkpoint(file)
