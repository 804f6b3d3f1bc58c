"""What a Llama-like target looks like: the few numbers and switches that the graph depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedModel

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
LARGEST = 1 << 22  # of any size: beyond any model


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base and, for long-context models, the published rescaling of its frequencies."""

    theta: float
    scaling: Mapping[str, Any] | None = None

    def tables(self, head_dim: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, each float32 [positions, head_dim / 2], computed in float64 once and rounded once."""
        inverse = self.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        inverse, attention = _rescaled(inverse, self.scaling or {}, self.theta, head_dim)
        angles = np.arange(positions, dtype=np.float64)[:, None] * inverse[None, :]
        return (np.cos(angles) * attention).astype(np.float32), (np.sin(angles) * attention).astype(np.float32)


def _rescaled(inverse: np.ndarray, scaling: Mapping[str, Any], theta: float, head_dim: int) -> tuple[np.ndarray, float]:
    """Apply a rope_scaling entry to the inverse frequencies; returns them and the factor on cos and sin."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return inverse, 1.0
    if kind == "linear":
        return inverse / float(scaling["factor"]), 1.0
    if kind == "llama3":
        factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        trained = float(scaling["original_max_position_embeddings"])
        blend = np.clip((trained * inverse / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
        return (1 - blend) * inverse / factor + blend * inverse, 1.0
    if kind == "yarn":
        return _yarn(inverse, scaling, theta, head_dim)
    raise UnsupportedModel(f"rope scaling {kind!r} is not supported — supported: default, linear, llama3, yarn")


def _yarn(inverse: np.ndarray, scaling: Mapping[str, Any], theta: float, head_dim: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolate slow frequencies, keep fast ones, ramp between."""
    factor, trained = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])

    def dimension(rotations: float) -> float:
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = dimension(float(scaling.get("beta_fast") or 32)), dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    weight, over = scaling.get("mscale"), scaling.get("mscale_all_dim")
    attention = scaling.get("attention_factor") or (magnitude(weight) / magnitude(over) if weight and over else magnitude(1.0))
    return inverse / factor * ramp + inverse * (1 - ramp), float(attention)


@dataclass(frozen=True)
class Arch:
    """A decoder-only transformer of the Llama family."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rms_eps: float
    rope: Rope
    max_position: int
    tied_head: bool
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    window: int | None = None

    @property
    def captured(self) -> tuple[int, ...]:
        """Layers whose *incoming* residual stream EAGLE-3 reads (2, n//2, n-3); clamped for toy models of under six layers."""
        return tuple(min(max(layer, 0), self.layers - 1) for layer in (2, self.layers // 2, self.layers - 3))

    @property
    def linears(self) -> dict[str, tuple[tuple[str, ...], int, int]]:
        """Matrix of one layer -> (checkpoint parts joined along the outputs, outputs, inputs)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), q + 2 * kv, self.hidden),
            "o": (("self_attn.o_proj",), self.hidden, q),
            "gate_up": (("mlp.gate_proj", "mlp.up_proj"), 2 * self.intermediate, self.hidden),
            "down": (("mlp.down_proj",), self.hidden, self.intermediate),
        }


def arch_from_config(config: Mapping[str, Any]) -> Arch:
    """Read an HF ``config.json`` (transformers 4 and 5 forms). Raises UnsupportedModel when the graph would not be exact."""
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UnsupportedModel(f"architecture {kind!r} is not supported — supported: {', '.join(MODEL_TYPES)}")
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise UnsupportedModel("only SwiGLU without bias is supported — this config asks for another feed-forward")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        rope = _rope(config)
        bias = bool(config.get("attention_bias", False))
        windowed = kind == "mistral" or bool(config.get("use_sliding_window"))
        window = config.get("sliding_window", 4096) if windowed else None  # transformers' own default where the key is absent
        arch = Arch(
            model_type=kind,
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads)),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            rms_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=rope,
            max_position=int(config.get("max_position_embeddings", 2048)),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            qk_norm=kind == "qwen3",
            window=None if window is None else int(window),
        )
        sizes = (arch.hidden, arch.layers, arch.heads, arch.kv_heads, arch.head_dim, arch.intermediate)
        if not (all(1 <= size <= LARGEST for size in sizes) and 0 <= arch.vocab <= LARGEST):
            raise ValueError(f"a size that no model has, among {', '.join(map(str, (*sizes, arch.vocab)))}")
        arch.rope.tables(arch.head_dim, 1)  # a scaling that is unknown or lacks a number is refused here, before anything is written
    except KeyError as missing:
        raise UnsupportedModel(f"config.json lacks {missing} — is this a complete {kind} checkpoint?") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModel(f"config.json holds a value that cannot be used: {error} — download it again") from None
    return arch


def _rope(config: Mapping[str, Any]) -> Rope:
    """Rotary settings, from ``rope_parameters`` (transformers 5) or from ``rope_theta`` and ``rope_scaling``."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    if (scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel("partial rotary embedding is not supported — this config rotates only some dimensions of a head")
    if scaling.get("rope_type", scaling.get("type", "default")) == "default":
        return Rope(theta)
    if not scaling.get("original_max_position_embeddings"):
        scaling["original_max_position_embeddings"] = config.get("max_position_embeddings", 2048)
    return Rope(theta, scaling)
