"""Reading GGUF files and their tokenizers, and the errors for damaged or unsupported ones."""

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
from export.errors import UnsupportedModel
from export.text.gguf_text import text_of_gguf
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


def test_gguf_with_precomputed_frequencies_is_refused(tmp_path: Path) -> None:
    """llama.cpp stores the result of Llama 3.1's scaling in a tensor, from which the parameters cannot be read."""
    file = renamed(tmp_path, b"token_embd.weight", b"rope_freqs.weight")
    with refused("contains precomputed rotary frequencies, which cannot be read — export from the Hugging Face checkpoint"):
        open_checkpoint(file)


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
    with refused("architecture 'gemma' is not supported — supported: llama", UnsupportedModel):
        open_checkpoint(file)


class TokenizerHeader:
    """The tokenizer's fields of a GGUF header, with changes; None removes a field."""

    path = Path("model.gguf")

    def __init__(self, **changes: Any) -> None:
        fields = {
            "model": "gpt2",
            "tokens": ["a", "b", "ab"],
            "merges": ["a b"],
            "bos_token_id": 0,
            "eos_token_id": 1,
            "add_bos_token": True,
        }
        self._fields = {name: value for name, value in {**fields, **changes}.items() if value is not None}

    def field(self, key: str, default: Any = None) -> Any:
        return self._fields.get(key.removeprefix("tokenizer.ggml."), default)

    def keys(self) -> list[str]:
        return list(self._fields)


def test_tokenizer_of_a_header() -> None:
    tokenizer = text_of_gguf(TokenizerHeader(eot_token_id=2))  # type: ignore[arg-type]
    assert (tuple(tokenizer.stop), tokenizer.bos, dict(tokenizer.templates)) == ((1, 2), 0, {})
    assert text_of_gguf(TokenizerHeader(bos_token_id=None)).bos is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "model.gguf has no strings in tokenizer.ggml.tokens — "),
        ({"tokens": [1, 2]}, "has no strings in tokenizer.ggml.tokens — "),
        ({"merges": None}, "has no strings in tokenizer.ggml.merges — "),
        ({"merges": ["ab"]}, "cannot read the tokenizer of model.gguf: .* — the file is damaged"),
        ({"merges": ["a c"]}, "cannot read the tokenizer of model.gguf: .* — the file is damaged"),
        ({"bos_token_id": 3}, "model.gguf has 3 for its bos token — the file is damaged"),
        ({"eos_token_id": "b"}, "has 'b' for its eos token — "),
    ],
)
def test_impossible_tokenizer_is_refused(changes: dict[str, Any], message: str) -> None:
    with refused(message):
        text_of_gguf(TokenizerHeader(**changes))  # type: ignore[arg-type]
