"""The target in torch: many sequences side by side that grow by a token each, over a fixed KV buffer, or whole ones at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Checkpoint
from .errors import TrainingError


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer; the parts of ``qkv`` and ``gate_up`` are joined along the outputs."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


class StepOutput(NamedTuple):
    """States of tokens; the leading axes are those of the tokens."""

    final: Tensor  # [..., H] after the final norm; times the head they are the logits
    captures: Tensor  # [..., 3H]: the residual streams that enter the layers Arch.captured, without a norm


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of a layer: its index, rotated queries [..., heads, D] and keys [..., kv_heads, D], values -> [..., heads * D]."""


class TorchTarget:
    """Weights, and a KV buffer of ``batch`` sequences; no sequence is longer than ``capacity`` tokens."""

    def __init__(self, checkpoint: Checkpoint, batch: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self.arch: Arch = checkpoint.arch
        self.capacity = capacity

        def read(name: str) -> Tensor:
            return torch.tensor(checkpoint.read(name)).to(device, dtype)

        def joined(layer: int, matrix: str, kind: str = "weight") -> Tensor:
            return torch.cat([read(f"model.layers.{layer}.{part}.{kind}") for part in self.arch.linears[matrix][0]])

        def optional(wanted: bool, name: str) -> Tensor | None:
            return read(name) if wanted else None

        self.embedding = read("model.embed_tokens.weight")
        self.head = self.embedding if self.arch.tied_head else read("lm_head.weight")
        self.norm = read("model.norm.weight")
        self.layers = [
            Layer(
                read(f"model.layers.{i}.input_layernorm.weight"),
                joined(i, "qkv"),
                joined(i, "qkv", "bias") if self.arch.qkv_bias else None,
                joined(i, "o"),
                joined(i, "o", "bias") if self.arch.output_bias else None,
                optional(self.arch.qk_norm, f"model.layers.{i}.self_attn.q_norm.weight"),
                optional(self.arch.qk_norm, f"model.layers.{i}.self_attn.k_norm.weight"),
                read(f"model.layers.{i}.post_attention_layernorm.weight"),
                joined(i, "gate_up"),
                joined(i, "down"),
            )
            for i in range(self.arch.layers)
        ]
        cos, sin = self.arch.rope.tables(self.arch.head_dim, capacity)
        self.cos, self.sin = (torch.from_numpy(table).to(device, dtype) for table in (cos, sin))
        shape = (self.arch.layers, 2, batch, self.arch.kv_heads, capacity, self.arch.head_dim)
        self.cache = torch.zeros(shape, device=device, dtype=dtype)
        self._rows = torch.arange(batch, device=device)
        self._slots = torch.arange(capacity, device=device)

    @torch.inference_mode()
    def step(self, tokens: Tensor, lengths: Tensor, span: int) -> StepOutput:
        """Append one token to each sequence. ``tokens`` [B]; ``lengths`` [B] int64: cached tokens, all below ``span``, the slots read."""
        mask = (self._slots[:span] <= lengths[:, None])[:, None, None, :]

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.cache[index]
            keys[self._rows, :, lengths] = key
            values[self._rows, :, lengths] = value
            # Heads that share a key are rows of one product.
            grouped = query.unflatten(1, (self.arch.kv_heads, -1))
            return F.scaled_dot_product_attention(grouped, keys[:, :, :span], values[:, :, :span], mask).flatten(1)

        return self._layers(tokens, lengths, attend)

    @torch.inference_mode()
    def begin(self, row: int, tokens: Tensor) -> None:
        """Make ``tokens`` [n] the beginning of the sequence ``row``, in one pass."""

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.cache[index, 0, row, :, : len(tokens)] = key[0].transpose(0, 1)
            self.cache[index, 1, row, :, : len(tokens)] = value[0].transpose(0, 1)
            return _causal(query, key, value)

        self._layers(tokens[None], self._slots[None, : len(tokens)], attend)

    @torch.no_grad()  # not inference_mode: what comes out is read by a graph that is differentiated
    def whole(self, tokens: Tensor) -> StepOutput:
        """The states of all tokens [B, S] of sequences, without the KV buffer: final [B, S, H], captures [B, S, 3H]."""
        return self._layers(tokens, self._slots[None, : tokens.shape[1]], lambda _index, *heads: _causal(*heads))

    def _layers(self, tokens: Tensor, positions: Tensor, attend: Attend) -> StepOutput:
        """All layers over ``tokens`` of any shape, at ``positions`` that broadcast to it."""
        arch, captured = self.arch, {}
        cos, sin = self.cos[positions][..., None, :], self.sin[positions][..., None, :]
        hidden = self.embedding[tokens]
        for index, layer in enumerate(self.layers):
            if index in arch.captured:
                captured[index] = hidden
            joined = F.linear(self._norm(hidden, layer.input_norm), layer.qkv, layer.qkv_bias).unflatten(-1, (-1, arch.head_dim))
            query, key, value = joined.split([arch.heads, arch.kv_heads, arch.kv_heads], -2)
            if layer.q_norm is not None and layer.k_norm is not None:
                query, key = self._norm(query, layer.q_norm), self._norm(key, layer.k_norm)
            context = attend(index, rotate(query, cos, sin), rotate(key, cos, sin), value)
            hidden = hidden + F.linear(context, layer.o, layer.o_bias)
            gate, up = F.linear(self._norm(hidden, layer.post_norm), layer.gate_up).chunk(2, -1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        return StepOutput(self._norm(hidden, self.norm), torch.cat([captured[index] for index in arch.captured], -1))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.arch.rms_eps)


def torch_device(name: str) -> torch.device:
    """``name``: cpu or cuda. Raises TrainingError if there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("torch finds no GPU — leave --device cuda out, or install a build of torch for CUDA")
    return torch.device(name)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention among the tokens of [B, S, heads, D]; heads share keys as usual. Returns [B, S, heads * D]."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)


def compute_type(device: torch.device) -> torch.dtype:
    """bfloat16 where ``device`` has products of it, else float32: without them a processor is several times slower in bfloat16."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = device.type != "cpu" or capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves; x [..., D], cos and sin broadcast over its leading axes with D / 2 columns."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
