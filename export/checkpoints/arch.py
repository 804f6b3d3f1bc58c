"""The architecture of a Llama-like target: sizes, rotary embedding and switches, read from config.json.

To support a model with another switch, begin here; export/graphs/layers.py and export/parity/reference.py implement the switches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedModel

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
MAX_SIZE = 1 << 22  # upper bound of every size in a config; no model comes near it


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: its base, and the ``rope_scaling`` entry of config.json if the frequencies are rescaled.

    ``factors``: what each of the head_dim / 2 frequencies is divided by before that, None for nothing.
    """

    theta: float
    scaling: Mapping[str, Any] | None = None
    factors: tuple[float, ...] | None = None

    def tables(self, head_dim: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, each float32 [positions, head_dim / 2]. Computed in float64 and rounded once at the end."""
        frequencies = self.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.factors is not None:
            frequencies = frequencies / np.array(self.factors)
        frequencies, attention_factor = _scale_frequencies(frequencies, self.scaling or {}, self.theta, head_dim)
        angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies[None, :]
        return (np.cos(angles) * attention_factor).astype(np.float32), (np.sin(angles) * attention_factor).astype(np.float32)


def _scale_frequencies(frequencies: np.ndarray, scaling: Mapping[str, Any], theta: float, head_dim: int) -> tuple[np.ndarray, float]:
    """Apply a rope_scaling entry. Returns the scaled frequencies [head_dim / 2] and the factor to multiply cos and sin by."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return frequencies / float(scaling["factor"]), 1.0
    if kind == "llama3":
        factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        original_length = float(scaling["original_max_position_embeddings"])
        blend = np.clip((original_length * frequencies / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
        return (1 - blend) * frequencies / factor + blend * frequencies, 1.0
    if kind == "yarn":
        return _yarn(frequencies, scaling, theta, head_dim)
    raise UnsupportedModel(f"rope scaling {kind!r} is not supported — supported: default, linear, llama3, yarn")


def _yarn(frequencies: np.ndarray, scaling: Mapping[str, Any], theta: float, head_dim: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolate low frequencies, keep high ones, with a linear ramp between."""
    factor, original_length = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])

    def dimension(rotations: float) -> float:
        """The dimension that turns this many times within the original context."""
        return head_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = dimension(float(scaling.get("beta_fast") or 32)), dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    attention_factor = scaling.get("attention_factor")
    if not attention_factor:
        attention_factor = magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)
    return frequencies / factor * ramp + frequencies * (1 - ramp), float(attention_factor)


@dataclass(frozen=True)
class Arch:
    """Sizes and switches of a decoder-only transformer of the Llama family.

    ``window``: tokens in the sliding attention window, None for full attention. ``tied_head``: the output matrix is the embedding.
    """

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
        """EAGLE-3's usual captured layers: it reads the residual stream *entering* layers 2, n//2 and n-3 (clamped for tiny models)."""
        return tuple(min(max(layer, 0), self.layers - 1) for layer in (2, self.layers // 2, self.layers - 3))

    @property
    def linears(self) -> dict[str, tuple[tuple[str, ...], int, int]]:
        """The matrices of one layer: name -> (checkpoint tensors joined along the outputs, number of outputs, number of inputs)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), q + 2 * kv, self.hidden),
            "o": (("self_attn.o_proj",), self.hidden, q),
            "gate_up": (("mlp.gate_proj", "mlp.up_proj"), 2 * self.intermediate, self.hidden),
            "down": (("mlp.down_proj",), self.hidden, self.intermediate),
        }


def arch_from_config(config: Mapping[str, Any]) -> Arch:
    """Read a Hugging Face ``config.json``, as transformers 4 or 5 writes it. Raises UnsupportedModel if the graphs cannot express the model
    exactly, or if a key is missing or has an impossible value."""
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UnsupportedModel(f"architecture {kind!r} is not supported — supported: {', '.join(MODEL_TYPES)}")
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise UnsupportedModel("only SwiGLU without bias is supported — this config asks for another feed-forward")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        rope = _rope(config)
        bias = bool(config.get("attention_bias", False)) and kind in ("llama", "qwen3")  # the others' code does not read it
        windowed = kind == "mistral" or bool(config.get("use_sliding_window"))
        window = config.get("sliding_window", 4096) if windowed else None  # 4096 is transformers' default
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
        if not (all(1 <= size <= MAX_SIZE for size in sizes) and 0 <= arch.vocab <= MAX_SIZE):
            raise ValueError(f"one of the sizes {', '.join(map(str, (*sizes, arch.vocab)))} is out of range")
        if arch.head_dim % 2:
            raise ValueError(f"heads of {arch.head_dim} numbers (head_dim), of which rotary embedding needs an even count")
        if arch.heads % arch.kv_heads:
            raise ValueError(f"{arch.heads} heads (num_attention_heads) cannot share {arch.kv_heads} (num_key_value_heads)")
        arch.rope.tables(arch.head_dim, 1)  # refuses an unknown or incomplete scaling now, before anything is written
    except KeyError as missing:
        raise UnsupportedModel(f"config.json lacks {missing} — is this a complete {kind} checkpoint?") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModel(f"config.json holds a value that cannot be used: {error} — download it again") from None
    return arch


def _rope(config: Mapping[str, Any]) -> Rope:
    """Rotary settings, from ``rope_parameters`` (transformers 5) or from ``rope_theta`` and ``rope_scaling`` (transformers 4)."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    if (scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel("partial rotary embedding is not supported — this config rotates only some dimensions of a head")
    if scaling.get("rope_type", scaling.get("type", "default")) == "default":
        return Rope(theta)
    if not scaling.get("original_max_position_embeddings"):
        scaling["original_max_position_embeddings"] = config.get("max_position_embeddings", 2048)
    return Rope(theta, scaling)
