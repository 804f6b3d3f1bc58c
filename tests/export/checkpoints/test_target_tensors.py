"""Every tensor of a target is used or named in a refusal; which matrix is the head is decided as in transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from export.checkpoints.fetch import open_checkpoint
from export.checkpoints.quantized.settings import quantization_of
from export.errors import UnsupportedModel
from tests.support.checkpoints import TOKENS, logits_of, refused
from tests.support.hf_directory import WEIGHTS, HfDirectory
from tests.support.tiny import reference

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def llama(tmp_path: Path) -> HfDirectory:
    return HfDirectory(tmp_path / "model")


def expect_as_transformers(directory: Path) -> Any:
    """Logits of the numpy reference equal those of transformers' model of the same directory."""
    checkpoint = open_checkpoint(directory)
    expected = reference(AutoModelForCausalLM.from_pretrained(directory).float().eval(), TOKENS)[0]
    np.testing.assert_allclose(logits_of(checkpoint), expected, rtol=0, atol=1e-4)
    return checkpoint


SURPLUS = {
    "model.layers.0.self_attn.q_proj.bias": "the config.json announces no such bias",
    "model.layers.1.self_attn.o_proj.bias": "the config.json announces no such bias",
    "model.layers.0.mlp.up_proj.bias": "only models without this bias",
    "lm_head.bias": "only models without this bias",
    "model.layers.0.self_attn.q_norm.weight": "of another architecture than their config.json says",
    "model.layers.1.pre_feedforward_layernorm.weight": "of another architecture than their config.json says",
    "model.layers.0.self_attn.q_proj.lora_A.default.weight": "merge the adapter into the weights",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": "merge the adapter into the weights",
    "model.layers.2.input_layernorm.weight": "the config.json says 2 layers",
    "model.layers.10.mlp.up_proj.weight": "the config.json says 2 layers",
    "vision_tower.encoder.weight": "only models of text",
    "model.visual.patch_embed.proj.weight": "only models of text",
    "multi_modal_projector.linear_1.weight": "only models of text",
    "model.layers.0.self_attn.q_proj.weight_scale": "quantized in a way that the config.json does not say",
    "model.layers.0.self_attn.q_proj.qweight": "quantized in a way that the config.json does not say",
    "model.layers.0.self_attn.q_proj.weight.absmax": "quantized in a way that the config.json does not say",
    "model.layers.0.self_attn.k_scale": "quantized in a way that the config.json does not say",
    "model.mtp_layers.0.input_layernorm.weight": "layers that draft tokens",
    "model.layers.0.block_sparse_moe.gate.weight": "mixtures of experts",
    "model.layers.0.mlp.experts.0.up_proj.weight": "mixtures of experts",
    "score.weight": "get the files that belong to each other",
}


@pytest.mark.parametrize("name", SURPLUS)
def test_tensor_that_would_be_left_out_is_named(llama: HfDirectory, name: str) -> None:
    llama.write({**llama.tensors, name: np.ones(64, np.float32)})
    with refused(f"has {name}, which a llama model with this config.json does not use — .*{SURPLUS[name]}", UnsupportedModel):
        open_checkpoint(llama.path)


def test_many_tensors_are_counted(llama: HfDirectory) -> None:
    llama.write({**llama.tensors, **{f"extra.{number}": np.ones(1, np.float32) for number in range(12)}})
    with refused("has extra.0, extra.1, extra.2 and 9 more tensors, which", UnsupportedModel):
        open_checkpoint(llama.path)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "model.position_ids"])
def test_old_buffers_are_left_out_and_this_is_said(llama: HfDirectory, name: str) -> None:
    """Whatever their numbers, transformers computes them."""
    llama.write({**llama.tensors, name: np.full(8, 9.0, np.float32)})
    checkpoint = expect_as_transformers(llama.path)
    assert checkpoint.notes == (f"{name} (1 tensors) is left out, as transformers does: it is computed",)


@pytest.mark.parametrize(
    ("kind", "bias"), [("llama", True), ("mistral", False), ("qwen2", False), ("qwen3", True)], ids=["llama", "mistral", "qwen2", "qwen3"]
)
def test_attention_bias_is_read_where_the_architecture_has_it(tmp_path: Path, kind: str, bias: bool) -> None:
    """Mistral and Qwen2 have the key in some config.json files, and transformers' code for them does not read it."""
    directory = HfDirectory(tmp_path / "model", kind, attention_bias=bias)
    directory.configure(attention_bias=True)
    expect_as_transformers(directory.path)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_missing_tensor_is_named(llama: HfDirectory, name: str) -> None:
    llama.write({key: tensor for key, tensor in llama.tensors.items() if key != name})
    with refused(f"lacks {name} — it is incomplete or of another model"):
        open_checkpoint(llama.path)


def test_missing_head_mentions_the_tie(llama: HfDirectory) -> None:
    for value in (False, None):
        llama.configure(tie_word_embeddings=value)
        with refused(r"lacks lm_head.weight — if its output matrix is the embedding, set tie_word_embeddings to true in its config.json"):
            open_checkpoint(llama.path)


@pytest.mark.parametrize("case", ["no head", "copy", "other head", "head only", "stored head", "base model"])
def test_head_and_embedding_are_those_of_transformers(llama: HfDirectory, case: str) -> None:
    embedding, others = llama.tensors[EMBEDDING], {name: tensor for name, tensor in llama.tensors.items() if name != EMBEDDING}
    other = embedding[::-1].copy()
    tensors = {
        "no head": llama.tensors,
        "copy": {**llama.tensors, HEAD: embedding},
        "other head": {**llama.tensors, HEAD: other},
        "head only": {**others, HEAD: embedding},
        "stored head": {**llama.tensors, HEAD: other},
        "base model": {name.removeprefix("model."): tensor for name, tensor in llama.tensors.items()},
    }[case]
    llama.write(tensors)
    llama.configure(tie_word_embeddings=case != "stored head")
    checkpoint = expect_as_transformers(llama.path)
    assert checkpoint.arch.tied_head == (case not in ("other head", "stored head"))
    notes = {
        "copy": "is left out: .* it is a copy",
        "other head": "the stored lm_head.weight is used",
        "head only": "is also the embedding",
    }
    assert len(checkpoint.notes) == (case in notes)
    if case in notes:
        assert re.search(notes[case], checkpoint.notes[0])


def test_stored_head_that_differs_in_its_last_row_only(llama: HfDirectory) -> None:
    head = llama.tensors[EMBEDDING].copy()
    head[-1, -1] += 1
    llama.write({**llama.tensors, HEAD: head})
    assert not expect_as_transformers(llama.path).arch.tied_head


def test_one_tensor_under_two_names(llama: HfDirectory) -> None:
    llama.write({**llama.tensors, "norm.weight": np.ones(64, np.float32)})
    with refused("has both .*norm.weight and .*norm.weight — download the checkpoint again"):
        open_checkpoint(llama.path)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32])
def test_integers_without_a_config_that_explains_them(llama: HfDirectory, kind: Any) -> None:
    llama.add(model__layers__0__mlp__up_proj__weight=np.ones((96, 64), kind))
    with refused(r"has integers \(u?int\d+\) in model.layers.0.mlp.up_proj.weight, but no quantization_config says", UnsupportedModel):
        open_checkpoint(llama.path)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", EMBEDDING])
def test_numbers_that_are_not_finite_are_named(llama: HfDirectory, name: str, number: float) -> None:
    tensor = llama.tensors[name]
    tensor.reshape(-1)[-1] = number
    llama.write(llama.tensors)
    with refused(f"{WEIGHTS} has numbers in {name} that are not finite .*, which no --precision mends — download it again"):
        open_checkpoint(llama.path).read(name)


def test_large_finite_numbers_are_read(llama: HfDirectory) -> None:
    llama.add(model__norm__weight=np.full(64, 3e38, np.float32))
    assert (open_checkpoint(llama.path).read("model.norm.weight") == np.float32(3e38)).all()


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_adapter_is_refused_first(llama: HfDirectory, file: str) -> None:
    (llama.path / file).write_text("{}")
    (llama.path / "config.json").unlink()
    with refused(rf"has an adapter \({file}\), which would be left out — merge it into the weights", UnsupportedModel):
        open_checkpoint(llama.path)


QUANTIZED = {
    "of another tool": ("config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "'bitsandbytes'"),
    "old bitsandbytes": ("config.json", {"quantization_config": {"load_in_8bit": True}}, "'bitsandbytes'"),
    "nested": ("config.json", {"text_config": {"quantization_config": {"quant_method": "hqq"}}}, "text_config.quantization_config .*'hqq'"),
    "old key": ("config.json", {"compression_config": {"quant_method": "unknown"}}, "compression_config .*'unknown'"),
    "capitals": ("config.json", {"quantization_config": {"quant_method": "AQLM"}}, "'aqlm'"),
    "file of AutoGPTQ": ("quantize_config.json", {"quant_method": "marlin", "bits": 4}, "quantize_config.json .*'marlin'"),
    "file of ModelOpt": (
        "hf_quant_config.json",
        {"producer": {"name": "modelopt"}, "quantization": {"quant_method": "odd", "quant_algo": "X"}},
        "hf_quant_config.json .*'odd'",
    ),
}


@pytest.mark.parametrize("quantization", [{"quant_algo": None, "kv_cache_quant_algo": None}, {"quant_algo": None}], ids=str)
def test_modelopts_file_for_an_unquantized_checkpoint_says_nothing(llama: HfDirectory, quantization: dict[str, object]) -> None:
    (llama.path / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization}))
    assert quantization_of(llama.path, {}) is None
    open_checkpoint(llama.path)


@pytest.mark.parametrize("case", QUANTIZED)
def test_unreadable_quantization_is_refused_by_name_before_anything_else(llama: HfDirectory, case: str) -> None:
    """Even where architecture and weights could not be read either."""
    file, content, message = QUANTIZED[case]
    llama.configure(hidden_act="gelu")
    (llama.path / WEIGHTS).unlink()
    path = llama.path / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **content}))
    with refused(f"{message}.*, which cannot be read — .*export from the unquantized checkpoint", UnsupportedModel):
        open_checkpoint(llama.path)


@pytest.mark.parametrize("settings", [{}, [], "int8", {"bits": 3}, 4, True])
def test_settings_of_the_wrong_kind(llama: HfDirectory, settings: Any) -> None:
    llama.configure(quantization_config=settings)
    with refused("quantization_config in .*config.json .*quant_method — download it again"):
        open_checkpoint(llama.path)
