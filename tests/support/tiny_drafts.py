"""Tiny random EAGLE-3 drafts in the format of each published family, and their forward pass in torch, without a cache."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional

from tests.support.tiny import LLAMA3, VOCAB

FAMILIES = ("eagle", "eagle-safetensors", "specforge", "modelopt", "angelslim", "speculators")
DRAFT_VOCAB = 96
HEADS, KV_HEADS, INTERMEDIATE = 4, 2, 96


@dataclass(frozen=True)
class TinyDraft:
    """A draft's tensors in float32 with neutral names (layers.0.…, fc, norm). ``tokens``: the target's id of each draft token."""

    tensors: Mapping[str, torch.Tensor]
    tokens: torch.Tensor
    embedding: torch.Tensor
    head: torch.Tensor
    layers: int
    head_dim: int
    eps: float
    theta: float
    scaling: Mapping[str, Any] | None
    norm_before_residual: bool
    norm_output: bool

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """[n, captured * Ht] of the target -> [n, H]."""
        if "input_norm" in self.tensors:
            features = self._norm("input_norm", features)
        if "fc_norm.0" in self.tensors:
            count = sum(name.startswith("fc_norm.") for name in self.tensors)
            parts = features.chunk(count, dim=-1)
            features = torch.cat([self._norm(f"fc_norm.{index}", part) for index, part in enumerate(parts)], dim=-1)
        return features @ self.tensors["fc"].T

    def forward(
        self, tokens: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows at once: the feature for the next step [n, H], and log-probabilities over the draft's vocabulary [n, Vd]."""
        for layer in range(self.layers):
            stem = f"layers.{layer}."
            if layer == 0:
                feature = self._norm(stem + "hidden_norm", hidden)
                read = torch.cat([self._norm(stem + "input_layernorm", self.embedding[tokens]), feature], dim=-1)
                residual = feature if self.norm_before_residual else hidden
            else:
                read, residual = self._norm(stem + "input_layernorm", hidden), hidden
            hidden = residual + self._attention(stem + "self_attn.", read, positions, mask)
            normed = self._norm(stem + "post_attention_layernorm", hidden)
            gate, up = self._linear(stem + "mlp.gate_proj", normed), self._linear(stem + "mlp.up_proj", normed)
            hidden = hidden + self._linear(stem + "mlp.down_proj", functional.silu(gate) * up)
        normed = self._norm("norm", hidden)
        return normed if self.norm_output else hidden, functional.log_softmax(normed @ self.head.T, dim=-1)

    def _attention(self, stem: str, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            self._linear(f"{stem}{part}_proj", x).view(len(x), heads, self.head_dim)
            for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        if f"{stem}q_norm" in self.tensors:
            query, key = self._norm(f"{stem}q_norm", query), self._norm(f"{stem}k_norm", key)
        angles = positions[:, None].float() * torch.cat([self._frequencies()] * 2)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        query, key = (each * cos + _half_turned(each) * sin for each in (query, key))
        key, value = (each.repeat_interleave(HEADS // KV_HEADS, dim=1) for each in (key, value))
        scores = torch.einsum("ihd,jhd->hij", query, key) / math.sqrt(self.head_dim)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return self._linear(f"{stem}o_proj", torch.einsum("hij,jhd->ihd", weights, value).reshape(len(x), -1))

    def _frequencies(self) -> torch.Tensor:
        """Radians a position, of half a head's dimensions."""
        plain = [self.theta ** (-2 * index / self.head_dim) for index in range(self.head_dim // 2)]
        return torch.tensor([_llama3(each, self.scaling) if self.scaling else each for each in plain])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.tensors[name]

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.tensors[name], self.tensors.get(f"{name}.bias"))


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _llama3(frequency: float, scaling: Mapping[str, Any]) -> float:
    wavelength, trained = 2 * math.pi / frequency, scaling["original_max_position_embeddings"]
    if wavelength < trained / scaling["high_freq_factor"]:
        return frequency
    if wavelength > trained / scaling["low_freq_factor"]:
        return float(frequency / scaling["factor"])
    share = (trained / wavelength - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
    return float((1 - share) * frequency / scaling["factor"] + share * frequency)


def write_draft(
    directory: Path,
    family: str,
    target: Any,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 1,
    vocab: int = DRAFT_VOCAB,
    ids: Sequence[int] | None = None,
    ids_at_top: bool | None = None,
    captured: int = 3,
    norm_before_residual: bool | None = None,
    norm_output: bool | None = None,
    norm_before_fc: bool | None = None,
    fc_norm: bool | None = None,
    bias: bool = False,
    qk_norm: bool = False,
    own_head: bool = True,
    embedding: str | None = None,
    config: Mapping[str, Any] | None = None,
    stored: Mapping[str, torch.Tensor | None] | None = None,
) -> TinyDraft:
    """Writes a draft for the transformers model ``target``. A switch that is None is left out of the config, so the family's default holds.

    ``ids``: captured layers, at the top of the config or in eagle_config [default: as in the family]. ``embedding``: "own" for a trained
    one, "stale" for a random one that must be ignored. ``config`` and ``stored`` change single keys and tensors of the files, None removes
    them; the returned reference does not include these changes.
    """
    speculators, target_hidden = family == "speculators", target.config.hidden_size
    captured, head_dim = captured if ids is None else len(ids), 32 if qk_norm else hidden // HEADS
    tensors = _random_tensors(seed, hidden, target_hidden, layers, vocab, captured, head_dim, bias, qk_norm)
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randperm(VOCAB, generator=generator)[:vocab].sort().values
    tensors |= _optional_tensors(generator, hidden, target_hidden, captured, bool(norm_before_fc), bool(fc_norm), embedding)
    if not own_head:
        del tensors["lm_head"]
    kind = torch.float16 if family.startswith("eagle") else torch.bfloat16
    files = {_stored_name(name, family): tensor.to(kind) for name, tensor in tensors.items()}
    files["d2t"] = tokens - torch.arange(vocab)
    if family != "modelopt":
        files["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, tokens, True)
    _write_tensors(directory, _changed(files, stored), pickled=family == "eagle")
    switches = {
        "norm_before_residual": norm_before_residual,
        "norm_output": norm_output,
        "norm_before_fc": norm_before_fc,
        "fc_norm": fc_norm,
        "target_hidden_size": None if hidden == target_hidden else target_hidden,
        "embed_requires_grad": (speculators and embedding == "own") or None,
    }
    written = _config(family, hidden, layers, vocab, head_dim, bias, qk_norm, {k: v for k, v in switches.items() if v is not None})
    if ids is not None:
        of_ids = written if (speculators if ids_at_top is None else ids_at_top) else written.setdefault("eagle_config", {})
        of_ids["eagle_aux_hidden_state_layer_ids"] = list(ids)
    (directory / "config.json").write_text(json.dumps(_changed(written, config)))
    rounded = {name: tensor.to(kind).float() for name, tensor in tensors.items()}
    usual = speculators and (config or {}).get("speculators_model_type") != "peagle"
    residual = usual if norm_before_residual is None else norm_before_residual
    return _reference(family, target, rounded, tokens, embedding == "own", layers, head_dim, residual, bool(norm_output))


def _optional_tensors(
    generator: torch.Generator, hidden: int, target_hidden: int, captured: int, norm_before_fc: bool, fc_norm: bool, embedding: str | None
) -> dict[str, torch.Tensor]:
    tensors = {}
    if norm_before_fc:
        tensors["input_norm"] = 1 + 0.3 * torch.randn(captured * target_hidden, generator=generator)
    if fc_norm:
        tensors |= {f"fc_norm.{index}": 1 + 0.3 * torch.randn(target_hidden, generator=generator) for index in range(captured)}
    if embedding:
        tensors["embed_tokens"] = 1.5 * hidden**-0.5 * torch.randn(VOCAB, hidden, generator=generator)
    return tensors


def _reference(
    family: str,
    target: Any,
    tensors: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    own_embedding: bool,
    layers: int,
    head_dim: int,
    norm_before_residual: bool,
    norm_output: bool,
) -> TinyDraft:
    """The draft in torch. It uses the target's embedding unless it has its ``own_embedding``, and the target's head if it has none."""
    return TinyDraft(
        tensors=tensors,
        tokens=tokens,
        embedding=tensors["embed_tokens"] if own_embedding else target.get_input_embeddings().weight.detach(),
        head=tensors["lm_head"] if "lm_head" in tensors else target.get_output_embeddings().weight.detach()[tokens],
        layers=layers,
        head_dim=head_dim,
        eps=1e-5,
        theta=5e5 if family in ("modelopt", "speculators") else 1e4,
        scaling=LLAMA3 if family == "modelopt" else None,
        norm_before_residual=norm_before_residual,
        norm_output=norm_output,
    )


def _random_tensors(
    seed: int, hidden: int, target_hidden: int, layers: int, vocab: int, captured: int, head_dim: int, bias: bool, qk_norm: bool
) -> dict[str, torch.Tensor]:
    """As wide as tests.support.tiny's, so that a wrong mask, position or norm shows."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"fc": (hidden, captured * target_hidden), "norm": (hidden,), "lm_head": (vocab, hidden)}
    for layer in range(layers):
        stem, inputs = f"layers.{layer}.", 2 * hidden if layer == 0 else hidden
        norms = ("input_layernorm", "post_attention_layernorm", *(("hidden_norm",) if layer == 0 else ()))
        shapes |= {stem + name: (hidden,) for name in norms}
        projections = {"q": (HEADS * head_dim, inputs), "k": (KV_HEADS * head_dim, inputs), "v": (KV_HEADS * head_dim, inputs)}
        projections["o"] = (hidden, HEADS * head_dim)
        shapes |= {f"{stem}self_attn.{part}_proj": shape for part, shape in projections.items()}
        shapes |= {f"{stem}self_attn.{part}_proj.bias": shape[:1] for part, shape in projections.items() if bias}
        shapes |= {f"{stem}self_attn.{part}_norm": (head_dim,) for part in "qk" if qk_norm}
        shapes |= {f"{stem}mlp.{part}_proj": (INTERMEDIATE, hidden) for part in ("gate", "up")}
        shapes[f"{stem}mlp.down_proj"] = (hidden, INTERMEDIATE)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        scale = 0.3 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
        tensors[name] = 1 + scale * noise if "norm" in name else scale * noise
    return tensors


def _stored_name(name: str, family: str) -> str:
    if family != "speculators":
        name = name.replace("layers.0.", "midlayer.")
    return name if name.endswith(".bias") else f"{name}.weight"


def _config(
    family: str, hidden: int, layers: int, vocab: int, head_dim: int, bias: bool, qk_norm: bool, switches: Mapping[str, Any]
) -> dict[str, Any]:
    layer: dict[str, Any] = {
        "model_type": "qwen3" if qk_norm else "llama",
        "hidden_size": hidden,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
    }
    if family != "eagle" or qk_norm:
        layer["head_dim"] = head_dim
    if bias:
        layer["attention_bias"] = True
    if family == "speculators":
        layer["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
        verifier = {"name_or_path": "tiny", "architectures": ["LlamaForCausalLM"]}
        return {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "speculators_config": {"algorithm": "eagle3", "default_proposal_method": "greedy", "verifier": verifier},
            "transformer_layer_config": layer,
            "draft_vocab_size": vocab,
            **switches,
        }
    flat = {**layer, "draft_vocab_size": vocab, **switches}
    if family == "specforge":
        return {**flat, "architectures": ["LlamaForCausalLMEagle3"], "torch_dtype": "bfloat16", "rope_theta": 1e4, "rope_scaling": None}
    if family == "modelopt":
        used = {"use_aux_hidden_state": True, "use_last_layernorm": True, "use_input_layernorm_in_first_layer": True}
        rope = {"rope_theta": 5e5, "rope_scaling": dict(LLAMA3)}
        return {**flat, "architectures": ["LlamaForCausalLMEagle3"], **rope, "eagle_config": {**used, "use_mtp_layernorm": False}}
    if family == "angelslim":
        return {**flat, "architectures": ["Eagle3LlamaForCausalLM"], "target_model_type": "llama", "rope_theta": 1e4}
    return {**flat, "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    changes = changes or {}
    return {name: value for name, value in {**values, **changes}.items() if name not in changes or value is not None}


def _write_tensors(directory: Path, tensors: dict[str, torch.Tensor], pickled: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if pickled:
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors", {"format": "pt"})
