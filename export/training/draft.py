"""The EAGLE-3 draft in torch, unrolled for training (arXiv 2503.01840: training-time test)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.arch import Arch
from ..checkpoints.draft_checkpoint import HEAD, DraftCheckpoint
from ..checkpoints.rope import Rope
from ..checkpoints.safetensors import Checkpoint
from .errors import TrainingError
from .target import rotate

Angles = tuple[Tensor, Tensor]
"""cos and sin at the rows' positions, each [B, R, 1, D / 2]."""


@dataclass(frozen=True)
class DraftShape:
    """Sizes of the draft's layer and of the target's vocabulary, and EAGLE-3.1's two norms (arXiv 2605.09992): ``fc_norm``, one for each
    captured layer before fc; ``norm_output``, the next step reads the feature after the final norm."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    rms_eps: float
    rope: Rope
    vocab: int
    fc_norm: bool = False
    norm_output: bool = False

    @classmethod
    def of_target(cls, arch: Arch, norms: bool = False) -> DraftShape:
        """A layer of the target's own size. ``norms``: EAGLE-3.1's."""
        sizes = (arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.intermediate, arch.rms_eps, _draft_rope(arch), arch.vocab)
        return cls(*sizes, fc_norm=norms, norm_output=norms)


def _draft_rope(arch: Arch) -> Rope:
    """The target's, without a GGUF's own factors, which a draft's config.json cannot say."""
    return replace(arch.rope, factors=None)


class Attention(nn.Module):
    """The projections; ``UnrolledCache`` computes the attention."""

    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.q_proj = nn.Linear(2 * shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Norm(nn.Module):
    """RMSNorm in the dtype of its input: torch's own is several times slower if the weight has another."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class MidLayer(nn.Module):
    """The decoder layer. It reads the concatenation of the token's embedding and the feature."""

    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.shape = shape
        self.input_layernorm = Norm(shape.hidden, shape.rms_eps)
        self.hidden_norm = Norm(shape.hidden, shape.rms_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden, shape.rms_eps)
        self.mlp = FeedForward(shape)

    def joined(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """Input of the attention, [..., 2H]."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(feature)], -1)

    def forward(self, embedded: Tensor, feature: Tensor, cache: UnrolledCache, angles: Angles) -> Tensor:
        """embedded, feature [B, R, H] of one step's rows -> the next feature [B, R, H], before the final norm."""
        both = self.joined(embedded, feature)
        key, value = (None, None) if cache.first_step else self.keys_values(both, angles)
        feature = feature + self.self_attn.o_proj(cache.attend(self._query(both, angles), key, value))
        return feature + self.mlp(self.post_attention_layernorm(feature))

    def keys_values(self, both: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Rotated keys and values, each [B, Hkv, R, D]."""
        key, value = (self._by_head(project(both)) for project in (self.self_attn.k_proj, self.self_attn.v_proj))
        return rotate(key, *angles).transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()

    def _query(self, both: Tensor, angles: Angles) -> Tensor:
        """Rotated and scaled queries [B, Hkv, R, group, D]."""
        query = rotate(self._by_head(self.self_attn.q_proj(both)), *angles) * self.shape.head_dim**-0.5
        return query.unflatten(2, (self.shape.kv_heads, -1)).transpose(1, 2).contiguous()

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.head_dim))


class UnrolledCache:
    """Keys and values of the unrolled steps. A row sees step 0 up to its position and itself in later steps, as in a chain."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor) -> None:
        """``keys``, ``values`` [B, Hkv, S, D] of step 0; ``rows`` [B, R]: the positions that are unrolled."""
        self.keys, self.values = keys, values
        after = torch.arange(keys.shape[2], device=rows.device) > rows[..., None]
        self.masked = after[:, None, :, None, :]  # [B, 1, R, 1, S]
        self.own: list[tuple[Tensor, Tensor]] = []
        self.first_step = True

    def attend(self, query: Tensor, key: Tensor | None, value: Tensor | None) -> Tensor:
        """``query`` [B, Hkv, R, group, D]; ``key``, ``value`` [B, Hkv, R, D] of this step, None in step 0. Returns [B, R, heads * D]."""
        self.first_step = False
        if key is not None and value is not None:
            self.own.append((key, value))
        flat, span = query.flatten(2, 3), self.keys.shape[2]
        scores = (flat @ self.keys.transpose(-1, -2)).view(*query.shape[:4], span).float().masked_fill_(self.masked, float("-inf"))
        own = [(query * key[:, :, :, None]).sum(-1, keepdim=True, dtype=torch.float32) for key, _ in self.own]
        weights = torch.cat([scores, *own], -1).softmax(-1).to(query.dtype)
        context = (weights[..., :span].flatten(2, 3) @ self.values).view_as(query)
        for index, (_, value) in enumerate(self.own):
            context = context + weights[..., span + index, None] * value[:, :, :, None]
        return context.transpose(1, 2).flatten(2)


class TorchDraft(nn.Module):
    """fc, one decoder layer, and a head over ``tokens`` [Vd] (target ids, ascending). Parameters have the names of released checkpoints."""

    def __init__(self, shape: DraftShape, tokens: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(3 * shape.hidden, shape.hidden, bias=False)
        self.fc_norm = nn.ModuleList([Norm(shape.hidden, shape.rms_eps) for _ in range(3)] if shape.fc_norm else [])
        self.midlayer = MidLayer(shape)
        self.norm = Norm(shape.hidden, shape.rms_eps)
        self.lm_head = nn.Linear(shape.hidden, len(tokens), bias=False)
        self.tokens: Tensor
        self.register_buffer("tokens", tokens, persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def fuse(self, captures: Tensor) -> Tensor:
        """The target's captures [..., 3H] -> features [..., H]."""
        if self.fc_norm:
            captures = torch.cat([norm(part) for norm, part in zip(self.fc_norm, captures.chunk(3, -1), strict=True)], -1)
        return self.fc(captures)

    @torch.no_grad()
    def scale_norms(self, captures: Tensor) -> None:
        """Let fc_norm give captures the size that they have, so that fc reads what it would read without."""
        for norm, part in zip(self.fc_norm, captures.float().chunk(3, -1), strict=True):
            norm.weight.fill_(float(part.square().mean().sqrt()))

    @torch.no_grad()
    def init_from_draft(self, checkpoint: DraftCheckpoint) -> None:
        """Copy the weights of a draft of the same shape and vocabulary."""
        for name, parameter in self.named_parameters():
            stored = name.replace("midlayer.", "layers.0.")
            parameter.copy_(torch.tensor(checkpoint.read(stored if stored == HEAD else f"model.{stored}")))

    @torch.no_grad()
    def init_from_target(self, target: Checkpoint) -> None:
        """Copy the target's last layer and head, and read its highest captured state. The embedding begins with small random weights."""
        arch, h = target.arch, self.shape.hidden
        prefix = f"model.layers.{arch.layers - 1}."

        def read(name: str) -> Tensor:
            return torch.tensor(target.read(name))

        self.fc.weight.zero_()
        self.fc.weight[:, 2 * h :] = torch.eye(h)
        for name, parameter in self.midlayer.named_parameters():
            if parameter.shape == (parameter.shape[0], 2 * h) and name.startswith("self_attn.") and "o_proj" not in name:
                parameter[:, :h].mul_(0.1)
                parameter[:, h:] = read(prefix + name)
            elif name == "hidden_norm.weight":
                parameter.copy_(read(prefix + "input_layernorm.weight"))
            elif name != "input_layernorm.weight":
                parameter.copy_(read(prefix + name))
        self.norm.weight.copy_(read("model.norm.weight"))
        head = read("model.embed_tokens.weight" if arch.tied_head else "lm_head.weight")
        self.lm_head.weight.copy_(head[self.tokens])


def expect_trainable(given: DraftCheckpoint, arch: Arch) -> None:
    """Raises TrainingError unless a run can begin with ``given``: one layer of the target's sizes, a head of its own, and either none or
    both of EAGLE-3.1's norms."""
    found, layer = given.arch, given.arch.layer

    def sizes(of: Arch) -> tuple[object, ...]:
        return of.hidden, of.heads, of.kv_heads, of.head_dim, of.intermediate, _draft_rope(of)

    other = {
        "other sizes than the target's layers": sizes(layer) != sizes(arch),
        "other captured layers": found.captured != arch.captured,
        f"{layer.layers} layers": layer.layers != 1,
        "biases or norms in its attention": layer.qkv_bias or layer.output_bias or layer.qk_norm,
        "norm_before_residual": found.norm_before_residual,
        "norm_before_fc": found.norm_before_fc,
        "one of EAGLE-3.1's norms without the other": bool(found.fc_norm) != found.norm_output,
        "an embedding of its own": found.own_embedding,
        "no head of its own": not given.own_head,
    }
    if reasons := [reason for reason, differs in other.items() if differs]:
        raise TrainingError(f"{given.path} cannot be trained on: it has {', '.join(reasons)} — leave --draft out")
