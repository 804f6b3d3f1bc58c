"""The target in torch, for training data: many sequences side by side, one token each per step, over a fixed KV buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    """States of the token that a step appended to every sequence."""

    final: Tensor  # [B, H] after the final norm; times the head they are the logits
    captures: Tensor  # [B, 3H]: the residual streams that enter the layers Arch.captured, without a norm


class TorchTarget:
    """Weights and KV buffer of ``batch`` sequences of at most ``capacity`` tokens."""

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
        arch = self.arch
        cos, sin = self.cos[lengths, None], self.sin[lengths, None]
        mask = (self._slots[:span] <= lengths[:, None])[:, None, None, :]
        hidden = self.embedding[tokens]
        entering = []
        for index, layer in enumerate(self.layers):
            entering.append(hidden)
            hidden = hidden + self._attention(index, layer, hidden, cos, sin, mask, lengths, span)
            gate, up = F.linear(self._norm(hidden, layer.post_norm), layer.gate_up).chunk(2, -1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        return StepOutput(self._norm(hidden, self.norm), torch.cat([entering[index] for index in arch.captured], -1))

    def _attention(
        self, index: int, layer: Layer, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, lengths: Tensor, span: int
    ) -> Tensor:
        arch = self.arch
        joined = F.linear(self._norm(hidden, layer.input_norm), layer.qkv, layer.qkv_bias).view(len(hidden), -1, arch.head_dim)
        query, key, value = joined.split([arch.heads, arch.kv_heads, arch.kv_heads], 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            query, key = self._norm(query, layer.q_norm), self._norm(key, layer.k_norm)
        keys, values = self.cache[index]
        keys[self._rows, :, lengths] = rotate(key, cos, sin)
        values[self._rows, :, lengths] = value
        # Heads that share a key are rows of one product.
        grouped = rotate(query, cos, sin).view(len(hidden), arch.kv_heads, -1, arch.head_dim)
        context = F.scaled_dot_product_attention(grouped, keys[:, :, :span], values[:, :, :span], mask)
        return F.linear(context.reshape(len(hidden), -1), layer.o, layer.o_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.arch.rms_eps)


def torch_device(name: str) -> torch.device:
    """``name``: cpu or cuda. Raises TrainingError if there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("torch finds no GPU — leave --device cuda out, or install a build of torch for CUDA")
    return torch.device(name)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves; x [..., D], cos and sin broadcast over its leading axes with D / 2 columns."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
