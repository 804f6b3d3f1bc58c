"""Tiny random DFlash drafts in the published forms, and their forward pass in torch, without a cache (dflash/model.py of z-lab/dflash)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional

from tests.support.tiny import VOCAB

FORMS = ("z-lab", "specforge", "speculators")
HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS, MASK, BLOCK = 4, 2, 32, 96, 3, 319, 6


@dataclass(frozen=True)
class TinyDFlash:
    """A draft's tensors in float32. ``tokens``: the target's id of each draft token. ``windows``, ``causal``: of each layer."""

    tensors: Mapping[str, torch.Tensor]
    tokens: torch.Tensor
    embedding: torch.Tensor
    head: torch.Tensor
    windows: Sequence[int | None]
    causal: Sequence[bool]
    block: int

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """[n, captured * H] of the target -> [n, H]."""
        return self._norm("hidden_norm", features @ self.tensors["fc"].T)

    def forward(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [m, Vd] of a block of ``tokens`` [m] behind committed tokens with fused features [n, H]."""
        stream, places = self.embedding[tokens], torch.arange(len(hidden) + len(tokens))
        for layer, (window, causal) in enumerate(zip(self.windows, self.causal, strict=True)):
            stem = f"layers.{layer}."
            normed = self._norm(f"{stem}input_layernorm", stream)
            query = self._heads(f"{stem}self_attn.q", normed, HEADS, places[len(hidden) :])
            key = self._heads(f"{stem}self_attn.k", torch.cat([hidden, normed]), KV_HEADS, places)
            value = functional.linear(torch.cat([hidden, normed]), self.tensors[f"{stem}self_attn.v_proj"]).view(-1, KV_HEADS, HEAD_DIM)
            seen = torch.ones(len(tokens), len(places), dtype=torch.bool)
            back = places[len(hidden) :, None] - places
            if causal:
                seen &= back >= 0
            if window is not None:
                seen &= back.abs() < window
            grouped = [each.transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0) for each in (key, value)]
            attended = functional.scaled_dot_product_attention(query.transpose(0, 1), *grouped, attn_mask=seen)
            stream = stream + functional.linear(attended.transpose(0, 1).flatten(1), self.tensors[f"{stem}self_attn.o_proj"])
            normed = self._norm(f"{stem}post_attention_layernorm", stream)
            gate, up = (functional.linear(normed, self.tensors[f"{stem}mlp.{part}_proj"]) for part in ("gate", "up"))
            stream = stream + functional.linear(functional.silu(gate) * up, self.tensors[f"{stem}mlp.down_proj"])
        return functional.log_softmax(self._norm("norm", stream) @ self.head.T, dim=-1)

    def _heads(self, name: str, x: torch.Tensor, heads: int, places: torch.Tensor) -> torch.Tensor:
        """Normed and turned heads [rows, heads, D]."""
        split = self._norm(f"{name}_norm", functional.linear(x, self.tensors[f"{name}_proj"]).view(len(x), heads, HEAD_DIM))
        frequencies = 1e6 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = (places[:, None] * frequencies).repeat(1, 2)[:, None]
        first, second = split.chunk(2, dim=-1)
        return split * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.tensors[name]


def write_dflash(
    directory: Path,
    target: Any,
    form: str = "z-lab",
    *,
    seed: int = 0,
    layers: int = LAYERS,
    block: int = BLOCK,
    ids: Sequence[int] = (1, 3),
    vocab: int | None = None,
    sliding: Sequence[bool] | None = None,
    embedding: bool = False,
    config: Mapping[str, Any] | None = None,
    stored: Mapping[str, torch.Tensor | None] | None = None,
) -> TinyDFlash:
    """Writes a draft for the transformers model ``target``. ``ids``: of the captured layers, as the form writes them. ``vocab``: of an own
    head [default: the target's head]. ``sliding``: which layers have a window of 5. ``config`` and ``stored`` change single keys and
    tensors of the files, None removes them; the returned reference does not include these changes."""
    hidden, generator = target.config.hidden_size, torch.Generator().manual_seed(seed)
    tensors = _tensors(generator, hidden, layers, len(ids))
    tokens = torch.arange(VOCAB)
    if vocab is not None:
        tokens = torch.randperm(VOCAB, generator=generator)[:vocab].sort().values
        tensors["lm_head"] = 1.5 * hidden**-0.5 * torch.randn(vocab, hidden, generator=generator)
    if embedding:
        tensors["embed_tokens"] = torch.randn(VOCAB, hidden, generator=generator)
    files = {f"{name}.weight": tensor for name, tensor in tensors.items()}
    if vocab is not None:
        files |= {"d2t": tokens - torch.arange(vocab), "t2d": torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, tokens, True)}
    windowed = list(sliding or [False] * layers)
    written = _config(form, hidden, layers, block, ids, windowed, vocab)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(_changed(written, config)))
    save_file({name: tensor.contiguous() for name, tensor in _changed(files, stored).items()}, directory / "model.safetensors")
    return TinyDFlash(
        tensors=tensors,
        tokens=tokens,
        embedding=tensors["embed_tokens"] if embedding else target.get_input_embeddings().weight.detach(),
        head=tensors["lm_head"] if vocab is not None else target.get_output_embeddings().weight.detach(),
        windows=[5 if each else None for each in windowed],
        causal=windowed,
        block=block,
    )


def _tensors(generator: torch.Generator, hidden: int, layers: int, captured: int) -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"fc": (hidden, captured * hidden), "hidden_norm": (hidden,), "norm": (hidden,)}
    for layer in range(layers):
        stem = f"layers.{layer}."
        shapes |= {stem + name: (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {
            f"{stem}self_attn.{part}_proj": (heads * HEAD_DIM, hidden) for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        }
        shapes |= {f"{stem}self_attn.o_proj": (hidden, HEADS * HEAD_DIM), f"{stem}mlp.down_proj": (hidden, INTERMEDIATE)}
        shapes |= {f"{stem}self_attn.{part}_norm": (HEAD_DIM,) for part in "qk"}
        shapes |= {f"{stem}mlp.{part}_proj": (INTERMEDIATE, hidden) for part in ("gate", "up")}
    noise = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: 1 + 0.3 * each if "norm" in name else 1.5 * each.shape[-1] ** -0.5 * each for name, each in noise.items()}


def _config(
    form: str, hidden: int, layers: int, block: int, ids: Sequence[int], sliding: Sequence[bool], vocab: int | None
) -> dict[str, Any]:
    layer: dict[str, Any] = {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": INTERMEDIATE,
        "layer_types": ["sliding_attention" if each else "full_attention" for each in sliding],
        "max_position_embeddings": 512,
        "max_window_layers": layers,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "sliding_window": 5 if any(sliding) else None,
        "tie_word_embeddings": False,
        "use_sliding_window": any(sliding),
        "vocab_size": VOCAB,
    }
    rope = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    if form == "speculators":
        return {
            "architectures": ["DFlashSpeculator"],
            "speculators_model_type": "dflash",
            "speculators_config": {
                "algorithm": "dflash",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": block - 1}],
            },
            "transformer_layer_config": {**layer, **rope},
            "draft_vocab_size": vocab or VOCAB,
            "block_size": block,
            "aux_hidden_state_layer_ids": list(ids),
            "mask_token_id": MASK,
            "sliding_window_non_causal": False,
            "sample_from_anchor": False,
            "projector_type": "dflash",
        }
    flat = {**layer, "architectures": ["DFlashDraftModel"], "auto_map": {"AutoModel": "dflash.DFlashDraftModel"}, "num_target_layers": 6}
    block_size = {"block_size": block}
    used = {"mask_token_id": MASK, "target_layer_ids": list(ids), **(block_size if form == "z-lab" else {})}
    vocabulary = {} if vocab is None else {"draft_vocab_size": vocab}
    return {**flat, **({} if form == "z-lab" else block_size), "rope_theta": 1e6, "rope_scaling": None, "dflash_config": used, **vocabulary}


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in {**values, **(changes or {})}.items() if value is not None or name not in (changes or {})}
