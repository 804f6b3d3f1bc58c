"""Writes a target and a draft of a given shape with random weights, as safetensors with their configs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RandomShape:
    """Sizes of a Llama."""

    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    draft_vocab: int


LLAMA3_8B = RandomShape(4096, 14336, 32, 8, 128, 128256, 32000)
SHARD = 8  # layers


def write_model(folder: Path, shape: RandomShape, layers: int) -> None:
    """Write ``folder``/target and ``folder``/draft in bfloat16; the weights are drawn on the GPU if there is one."""
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        values = {}
        for name, size in shapes.items():
            ones = len(size) == 1
            value = torch.ones(size) if ones else torch.randn(size, generator=generator, device=device) * 0.5 * size[-1] ** -0.5
            values[name] = value.to(torch.bfloat16).cpu()
        return values

    target, draft = folder / "target", folder / "draft"
    for place in (target, draft):
        place.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    for number, shapes in enumerate(_target_shards(shape, layers)):
        save_file(tensors(shapes), target / f"model-{number}.safetensors")
        index |= dict.fromkeys(shapes, f"model-{number}.safetensors")
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (target / "config.json").write_text(json.dumps({**_config(shape), "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}))
    _write_tokenizer(target, shape.vocab)
    d2t = torch.arange(shape.draft_vocab) * 3
    t2d = torch.zeros(shape.vocab, dtype=torch.bool)
    t2d[d2t + torch.arange(shape.draft_vocab)] = True
    save_file({**tensors(_draft_shapes(shape)), "d2t": d2t, "t2d": t2d}, draft / "model.safetensors")
    special = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": shape.draft_vocab}
    (draft / "config.json").write_text(json.dumps({**_config(shape), **special}))


def _config(shape: RandomShape) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _target_shards(shape: RandomShape, layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    yield {"model.embed_tokens.weight": (shape.vocab, shape.hidden), "model.norm.weight": (shape.hidden,)}
    yield {"lm_head.weight": (shape.vocab, shape.hidden)}
    for first in range(0, layers, SHARD):
        layer_shapes = [_layer(shape, f"model.layers.{layer}.", shape.hidden) for layer in range(first, min(first + SHARD, layers))]
        norms = ("input_layernorm", "post_attention_layernorm")
        shard = {name: size for sizes in layer_shapes for name, size in sizes.items()}
        for layer in range(first, min(first + SHARD, layers)):
            shard |= {f"model.layers.{layer}.{norm}.weight": (shape.hidden,) for norm in norms}
        yield shard


def _layer(shape: RandomShape, stem: str, inputs: int) -> dict[str, tuple[int, ...]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        f"{stem}self_attn.q_proj.weight": (queries, inputs),
        f"{stem}self_attn.k_proj.weight": (keys, inputs),
        f"{stem}self_attn.v_proj.weight": (keys, inputs),
        f"{stem}self_attn.o_proj.weight": (shape.hidden, queries),
        f"{stem}mlp.gate_proj.weight": (shape.mlp, shape.hidden),
        f"{stem}mlp.up_proj.weight": (shape.mlp, shape.hidden),
        f"{stem}mlp.down_proj.weight": (shape.hidden, shape.mlp),
    }


def _draft_shapes(shape: RandomShape) -> dict[str, tuple[int, ...]]:
    norms = ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm")
    return {
        **_layer(shape, "midlayer.", 2 * shape.hidden),
        **{f"{norm}.weight": (shape.hidden,) for norm in norms},
        "fc.weight": (shape.hidden, 3 * shape.hidden),
        "lm_head.weight": (shape.draft_vocab, shape.hidden),
    }


def _write_tokenizer(folder: Path, vocab: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(vocab)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "w0", "eos_token": "w1"}))
