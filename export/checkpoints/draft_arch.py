"""What an EAGLE-3 draft looks like: its one layer, and the switches in which the published families differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedModel
from .arch import Arch, arch_from_config

# ModelOpt's switches (in eagle_config) and the only values that the EAGLE-3 graph expresses.
_FIXED = {"use_aux_hidden_state": True, "use_last_layernorm": True, "use_input_layernorm_in_first_layer": True, "use_mtp_layernorm": False}


@dataclass(frozen=True)
class DraftArch:
    """``layer``: sizes of the draft's own layers; its vocab is the target's. ``captured``: target layers whose *incoming* residual stream
    is read. ``None`` for a norm before fc: the config does not say, the tensors do.

    norm_before_residual: the residual is the normed feature. fc_norm: one RMSNorm per captured layer before fc; norm_before_fc: one over
    all of them. norm_output: the recycled feature is the one after the final norm. own_embedding: the draft's embedding was trained.
    """

    layer: Arch
    target_hidden: int
    vocab: int
    captured: tuple[int, ...]
    norm_before_residual: bool
    fc_norm: bool | None
    norm_before_fc: bool | None
    norm_output: bool
    own_embedding: bool


def draft_arch(config: Mapping[str, Any], target: Arch) -> DraftArch:
    """Read the config.json of any of the four families. Raises UnsupportedModel when it is no EAGLE-3 draft of ``target``."""
    try:
        return _draft_arch(config, target)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"the draft's config.json holds a value that cannot be used: {error} — download it again") from None


def _draft_arch(config: Mapping[str, Any], target: Arch) -> DraftArch:
    nested = "transformer_layer_config" in config
    kind = config.get("speculators_model_type", "eagle3")
    if kind != "eagle3":
        raise UnsupportedModel(f"the draft is a speculator of type {kind!r} — only EAGLE-3 drafts are supported")
    options: Mapping[str, Any] = config.get("eagle_config") or {}
    for name, expected in _FIXED.items():
        if options.get(name, expected) != expected:
            raise UnsupportedModel(
                f"the draft's eagle_config has {name} = {options[name]!r} — only EAGLE-3's form ({expected}) is supported"
            )
    flat = dict(config["transformer_layer_config"] if nested else config)
    flat.setdefault("model_type", "llama")
    if not nested and not any("eagle" in name.lower() for name in config.get("architectures") or ()):
        flat["num_hidden_layers"] = 1  # EAGLE's own code has one, whatever its config says: 40 for Vicuna-13B, as the target has
    layer = arch_from_config(flat)
    if layer.vocab != target.vocab:
        raise UnsupportedModel(
            f"the draft is for a vocabulary of {layer.vocab} tokens, the target has {target.vocab} — they do not belong together"
        )
    hidden = int(config.get("target_hidden_size") or flat.get("target_hidden_size") or layer.hidden)
    if hidden != target.hidden:
        raise UnsupportedModel(
            f"the draft reads features of {hidden} numbers, the target's have {target.hidden} — they do not belong together"
        )

    def switch(name: str) -> bool | None:
        value = config.get(name, options.get(name))
        return None if value is None else bool(value)

    residual = switch("norm_before_residual")
    return DraftArch(
        layer=layer,
        target_hidden=hidden,
        vocab=int(config.get("draft_vocab_size") or flat.get("draft_vocab_size") or layer.vocab),
        captured=_captured(config, options, target),
        norm_before_residual=nested if residual is None else residual,  # speculators' default is True, the others' False
        fc_norm=switch("fc_norm"),
        norm_before_fc=switch("norm_before_fc"),
        norm_output=bool(switch("norm_output")),
        own_embedding=bool(config.get("embed_requires_grad")) or layer.hidden != target.hidden,
    )


def _captured(config: Mapping[str, Any], options: Mapping[str, Any], target: Arch) -> tuple[int, ...]:
    """Layer ids in our convention (streams entering a layer).

    SpecForge and ModelOpt write ids of the streams *leaving* a layer, nested in eagle_config; speculators write ids of streams entering
    one, at the top. The usual three are told apart by their values, wherever they stand.
    """
    default = target.captured
    given = options.get("eagle_aux_hidden_state_layer_ids")
    leaving = given is not None
    if given is None:
        given = config.get("eagle_aux_hidden_state_layer_ids")
    if given is None:
        return default
    if not isinstance(given, Sequence) or isinstance(given, str) or not given or not all(isinstance(layer, int) for layer in given):
        raise UnsupportedModel(f"the draft's captured layer ids are {given!r} — they must be a list of whole numbers")
    ids = tuple(sorted(set(given)))
    if ids in (default, tuple(layer - 1 for layer in default)):
        return default
    entering = tuple(layer + leaving for layer in ids)
    if not all(0 <= layer <= target.layers for layer in entering):
        raise UnsupportedModel(f"the draft reads layers {list(ids)}, the target has {target.layers} — they do not belong together")
    return entering
