"""Checks that a target's architecture uses every tensor of its checkpoint: what is left out changes answers without a sign."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModel
from .arch import Arch

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Buffers of older versions, which transformers leaves out too: it computes them.
_HARMLESS = re.compile(r"rotary_emb\.inv_freq$|(^|\.)position_ids$")
_ATTENTION = "the weights are of another architecture than their {config} says"
_QUANTIZED = "the weights are quantized in a way that the {config} does not say; get the one that belongs to them"
_REMEDIES = (
    (r"lora_|\.base_layer\.|adapter", "merge the adapter into the weights (peft's merge_and_unload)"),
    (
        r"(q|k|v|o)_proj\.bias$",
        "the {config} announces no such bias (attention_bias); get the one that belongs to them",
    ),
    (r"\.bias$", "only models without this bias are supported"),
    (r"vis(ual|ion)|image|audio|multi_modal|mm_projector", "only models of text are supported"),
    (r"mtp|nextn|medusa|eagle", "layers that draft tokens are not part of the target: export from the checkpoint without them"),
    (r"exp(ert)?s|router|block_sparse|ffn_gate_inp", "mixtures of experts are not supported"),
    (r"qweight|qzeros|g_idx|scale|zero_point|packed|absmax|quant|SCB$|\.weight_format$", _QUANTIZED),
    (r"_norm\.weight$|layernorm", _ATTENTION),
)


def expected_tensors(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the graphs read."""
    q, kv = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (arch.vocab, arch.hidden), "model.norm.weight": (arch.hidden,)}
    if not arch.tied_head:
        found[HEAD] = (arch.vocab, arch.hidden)
    for layer in range(arch.layers):
        stem = f"model.layers.{layer}."
        found |= {f"{stem}{norm}.weight": (arch.hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, outputs, inputs, bias in (
            ("q", q, arch.hidden, arch.qkv_bias),
            ("k", kv, arch.hidden, arch.qkv_bias),
            ("v", kv, arch.hidden, arch.qkv_bias),
            ("o", arch.hidden, q, arch.output_bias),
        ):
            found[f"{stem}self_attn.{part}_proj.weight"] = (outputs, inputs)
            if bias:
                found[f"{stem}self_attn.{part}_proj.bias"] = (outputs,)
        if arch.qk_norm:
            found |= {f"{stem}self_attn.{part}_norm.weight": (arch.head_dim,) for part in "qk"}
        found |= {f"{stem}mlp.{part}_proj.weight": (arch.intermediate, arch.hidden) for part in ("gate", "up")}
        found[f"{stem}mlp.down_proj.weight"] = (arch.hidden, arch.intermediate)
    return found


def harmless(names: Iterable[str]) -> list[str]:
    """Those that transformers leaves out without a change of the model."""
    return sorted(name for name in names if _HARMLESS.search(name))


def check_names(arch: Arch, names: Mapping[str, str], path: Path, stored: Callable[[str], str] = str, config: str = "config.json") -> None:
    """Raises UnsupportedModel if there is a tensor that the graphs do not read, CheckpointError if one is missing. ``names``: expected
    names of the tensors, and how the checkpoint spells them. For messages: ``stored``: the same for missing ones; ``config``: where the
    architecture stands."""
    given, expected = set(names), expected_tensors(arch)
    extra = sorted(given - expected.keys() - set(harmless(given)), key=_by_number)
    if extra:
        raise UnsupportedModel(
            f"{path} has {_some([names[name] for name in extra])}, which a {arch.model_type} model with this {config} does not use — "
            f"{_remedy(extra[0], arch, config)}"
        )
    missing = sorted(expected.keys() - given, key=_by_number)
    if missing == [HEAD]:
        raise CheckpointError(
            f"{path} lacks {HEAD} — if its output matrix is the embedding, set tie_word_embeddings to true in its config.json; "
            "else download it again"
        )
    if missing:
        raise CheckpointError(
            f"{path} lacks {_some([stored(name) for name in missing])} — it is incomplete or of another model, download it again"
        )


def _remedy(name: str, arch: Arch, config: str) -> str:
    layer = re.search(r"(?:layers|blk)\.(\d+)\.", name)
    if layer and int(layer[1]) >= arch.layers:
        return f"the {config} says {arch.layers} layers; get the one that belongs to the weights"
    found = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, name))
    return next(found, "get the files that belong to each other, or choose another model").format(config=config)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
