"""Tiny EAGLE-3 drafts for tests of the runtime: a random one, and one that is often right without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from export.cli import command
from runtime.console import run_command
from tests.support.tiny import VOCAB, tiny_model, write_tokenizer

HIDDEN, MLP, HEAD_DIM, DRAFT_VOCAB = 64, 96, 16, 96


def write_random_draft(directory: Path, seed: int = 0) -> None:
    """Writes a draft in SpecForge's format with random weights. It is right by chance only, but its trees have every shape."""
    random = np.random.default_rng(seed)
    tensors = {name: random.normal(0, 1.5 * shape[-1] ** -0.5, shape) for name, shape in _shapes(kv_heads=2).items()}
    tensors |= {name: 1 + 0.3 * random.normal(size=shape) for name, shape in _shapes(kv_heads=2).items() if "norm" in name}
    tensors["lm_head.weight"] = random.normal(0, 0.3, (DRAFT_VOCAB, HIDDEN))
    _write(directory, tensors, np.sort(random.choice(VOCAB, DRAFT_VOCAB, replace=False)), num_key_value_heads=2)


def write_echo(target: Path, draft: Path, seed: int = 0) -> None:
    """Writes a target whose logits depend mostly on its last token, and a draft that copies this token's embedding and shares the target's
    head.

    The copy passes through attention with constant queries and keys, which are so large that each row attends to itself only.
    """
    random = np.random.default_rng(seed)
    known = np.sort(random.choice(VOCAB, 2 * DRAFT_VOCAB, replace=False))
    model = tiny_model(tied=False, seed=seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
        model.lm_head.weight.mul_(2)
        model.lm_head.weight[np.setdiff1d(np.arange(VOCAB), known)] *= 0.7  # the draft cannot propose these; they still occur, but rarely
        model.lm_head.weight[2] = 0  # the end of the text
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.12)
            layer.mlp.down_proj.weight.mul_(0.12)
    model.save_pretrained(target)
    write_tokenizer(target)

    shapes = _shapes(kv_heads=4)
    tensors = {name: np.zeros(shape) for name, shape in shapes.items()} | {
        name: np.ones(shape) for name, shape in shapes.items() if "norm" in name
    }
    tensors["fc.weight"] = random.normal(0, 0.1, shapes["fc.weight"])
    tensors["midlayer.hidden_norm.weight"][:] = 0.2  # features have a small influence
    tensors["midlayer.mlp.down_proj.weight"] = random.normal(0, 0.02, shapes["midlayer.mlp.down_proj.weight"])
    tensors |= {f"midlayer.mlp.{part}_proj.weight": random.normal(0, 0.1, (MLP, HIDDEN)) for part in ("gate", "up")}
    tensors["midlayer.self_attn.v_proj.weight"][:, :HIDDEN] = np.eye(HIDDEN)
    tensors["midlayer.self_attn.o_proj.weight"] = np.eye(HIDDEN)
    tensors |= {f"midlayer.self_attn.{part}_proj.bias": np.full(HIDDEN, 30.0 if part in "qk" else 0.0) for part in "qkvo"}
    tensors["norm.weight"] = model.model.norm.weight.detach().numpy()
    del tensors["lm_head.weight"]
    _write(draft, tensors, known, num_key_value_heads=4, attention_bias=True, norm_before_residual=True)


def _shapes(kv_heads: int) -> dict[str, tuple[int, ...]]:
    attention = {
        "q": (HIDDEN, 2 * HIDDEN),
        "k": (kv_heads * HEAD_DIM, 2 * HIDDEN),
        "v": (kv_heads * HEAD_DIM, 2 * HIDDEN),
        "o": (HIDDEN, HIDDEN),
    }
    return {
        **{f"midlayer.self_attn.{part}_proj.weight": shape for part, shape in attention.items()},
        **{f"midlayer.{part}.weight": (HIDDEN,) for part in ("input_layernorm", "hidden_norm", "post_attention_layernorm")},
        "midlayer.mlp.gate_proj.weight": (MLP, HIDDEN),
        "midlayer.mlp.up_proj.weight": (MLP, HIDDEN),
        "midlayer.mlp.down_proj.weight": (HIDDEN, MLP),
        "fc.weight": (HIDDEN, 3 * HIDDEN),
        "norm.weight": (HIDDEN,),
        "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
    }


def _write(directory: Path, tensors: dict[str, np.ndarray], tokens: np.ndarray, **special: Any) -> None:
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "draft_vocab_size": len(tokens),
        "max_position_embeddings": 512,  # as many as its cache holds: attention sees everything
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **special,
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    stored = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    save_file({**stored, "d2t": tokens - np.arange(len(tokens)), "t2d": np.isin(np.arange(VOCAB), tokens)}, directory / "model.safetensors")


def prompt_of(length: int) -> list[int]:
    """Random tokens in the vocabularies of target and draft."""
    return [int(token) for token in np.random.default_rng(length).integers(3, 100, length)]


def export(target: Path, draft: Path, out: Path, *more: str) -> Path:
    """Exports target and draft. Returns the engine directory."""
    arguments = ["--weights", str(target), "--draft-weights", str(draft), "--out", str(out), "--name", "engine", *more]
    assert run_command(command, "resps-export", arguments) == 0
    return out / "engine"


def export_echo(root: Path, *more: str) -> Path:
    """Writes the models of `write_echo` to ``root``/target and ``root``/draft and exports them. Returns ``root``/engine."""
    write_echo(root / "target", root / "draft")
    return export(root / "target", root / "draft", root, *more)
