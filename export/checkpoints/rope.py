"""Rotary position embedding of a target: settings from config.json, and tables of cos and sin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedModel
from .config_values import positive

_ORIGINAL = "original_max_position_embeddings"


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
        return frequencies / positive(scaling, "factor"), 1.0
    if kind == "llama3":
        factor, low, high, original_length = (
            positive(scaling, key) for key in ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)
        )
        blend = np.clip((original_length * frequencies / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
        return (1 - blend) * frequencies / factor + blend * frequencies, 1.0
    if kind == "yarn":
        return _yarn(frequencies, scaling, theta, head_dim)
    raise UnsupportedModel(f"rope scaling {kind!r} is not supported — supported: default, linear, llama3, yarn")


def _yarn(frequencies: np.ndarray, scaling: Mapping[str, Any], theta: float, head_dim: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolate low frequencies, keep high ones, with a linear ramp between."""
    factor, original_length = positive(scaling, "factor"), positive(scaling, _ORIGINAL)

    def dimension(rotations: float) -> float:
        """The dimension that turns this many times within the original context."""
        return head_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = (dimension(positive({key: scaling.get(key) or usual}, key)) for key, usual in (("beta_fast", 32), ("beta_slow", 1)))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    usual = magnitude(1.0)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        usual = magnitude(positive(scaling, "mscale")) / magnitude(positive(scaling, "mscale_all_dim"))
    return frequencies / factor * ramp + frequencies * (1 - ramp), positive(scaling, "attention_factor", usual)


def rope_from_config(config: Mapping[str, Any]) -> Rope:
    """Rotary settings, from ``rope_parameters`` (transformers 5) or from ``rope_theta`` and ``rope_scaling`` (transformers 4).

    Where a config has both, ``rope_scaling`` replaces ``rope_parameters`` as a whole, as in transformers 5 (convert_rope_params_to_dict).
    Raises UnsupportedModel for settings that differ by layer or rotate only a part of a head.
    """
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kinds = set(config.get("layer_types") or ())
    if nested := sorted(key for key, value in scaling.items() if isinstance(value, Mapping) or key in kinds):
        raise UnsupportedModel(f"config.json sets rotary embedding for each kind of layer ({nested[0]}), which is not supported — choose "
                               "another model")  # fmt: skip
    base = scaling.pop("rope_theta", None)
    theta = positive(config if base is None else {"rope_theta": base}, "rope_theta", 10000.0)
    if (scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel("partial rotary embedding is not supported — this config rotates only some dimensions of a head")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    length = positive(config, "max_position_embeddings", 2048)
    original = positive({_ORIGINAL: config.get(_ORIGINAL) or scaling.get(_ORIGINAL) or None}, _ORIGINAL, length)
    scaling[_ORIGINAL] = original
    if kind == "yarn" and scaling.get("factor", 1.0) is None:
        scaling["factor"] = length / original
    return Rope(theta, scaling)
