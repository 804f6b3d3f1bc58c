"""Tiny random checkpoints of every architecture, made by transformers, which is also the reference for exports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 320
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# name -> model_type and special settings; together they use every field of Arch.
ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-llama3": ("llama", {"rope_parameters": {"rope_theta": 10000.0, **LLAMA3}}),
    "llama-bias": ("llama", {"attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
}


def tiny_model(name: str = "llama", *, tied: bool = True, seed: int = 0, **overrides: Any) -> Any:
    """A model of ARCHITECTURES in float32. All parameters are random, none has its initial value of one or zero."""
    kind, special = ARCHITECTURES[name]
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    config = AutoConfig.for_model(kind, **{**sizes, "tie_word_embeddings": tied, **special, **overrides})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor_name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in tensor_name:
                tensor.copy_(1 + 0.3 * noise)
            else:  # large enough that attention selects single rows, so that a wrong mask or position changes the logits
                tensor.copy_(noise * (0.3 if tensor.dim() == 1 else 1.5 * tensor.shape[-1] ** -0.5))
    return model


def random_ids(length: int, seed: int = 0) -> list[int]:
    """Token ids without the special ones."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCAB, length)]


def reference(model: Any, tokens: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits [n, V] of a whole sequence, and the residual stream [n, H] that enters each layer."""
    with torch.no_grad():
        result = model(torch.tensor([list(tokens)]), output_hidden_states=True, use_cache=False)
    return result.logits[0].float().numpy(), [each[0].float().numpy() for each in result.hidden_states]


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Every tensor in a checkpoint of ``model``."""
    tied = model.config.tie_word_embeddings
    return {name: tensor.numpy() for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def write_tokenizer(directory: Path) -> None:
    """Writes a byte-level BPE of at most VOCAB entries, trained on a few sentences, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "a dog sat on the log", "the cat and the dog"], trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def write_checkpoint(directory: Path, name: str = "llama", *, tied: bool = True, seed: int = 0, **overrides: Any) -> Any:
    """Writes a complete Hugging Face directory. Returns its model."""
    model = tiny_model(name, tied=tied, seed=seed, **overrides)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def write_gguf(
    file: Path,
    model: Any,
    *,
    tokenizer: Path | None = None,
    tokenizer_kind: str = "gpt2",
    split: str = "default",
    add_bos: bool = False,
    quantized: Sequence[str] = (),
    weights: Mapping[str, np.ndarray] | None = None,
    raw: Mapping[str, tuple[Any, np.ndarray]] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    header: Mapping[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Writes ``model`` as llama.cpp's converter does. ``quantized``: tensors in Q8_0. ``extra``: header fields of the architecture, and
    ``header`` others. ``weights``: instead of all of the model's. ``raw``: type and bytes of some, in the file's order of rows.
    ``tensors``: more, by their names in the file."""
    import gguf

    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(file, kind)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_context_length(config.max_position_embeddings)
    if "head_dim" in ARCHITECTURES[kind][1]:
        writer.add_key_length(config.head_dim)
    for key, value in {**{f"{kind}.{key.replace('__', '.')}": value for key, value in extra.items()}, **(header or {})}.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32 if isinstance(value, float) else writer.add_string
        add(key, value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, config.vocab_size, tokenizer_kind, split, add_bos)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    for name, weight in (weights_of(model) if weights is None else weights).items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads and kind == "llama":  # from rotate-half to interleaved rows
            weight = weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if raw is not None and name in raw:
            writer.add_tensor(stored, raw[name][1], raw_dtype=raw[name][0])
        elif name in quantized:
            values = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(stored, values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(stored, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: Path, vocab: int, kind: str, split: str, add_bos: bool) -> None:
    bpe = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    writer.add_add_bos_token(add_bos)
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    tokens += [f"[unused{i}]" for i in range(len(tokens), vocab)]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])  # the first three are control tokens
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
