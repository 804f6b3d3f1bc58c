"""The architecture of a draft, read from config.json: sizes of its layers, captured layers, and the switches of each family.

The families are EAGLE's own checkpoints, SpecForge, NVIDIA ModelOpt and vLLM's speculators; DFlash's are in one_pass/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.manifest.schema import DFLASH, OnePass

from ..errors import UnsupportedModel
from .arch import Arch, arch_from_config
from .one_pass.config import SCALES, Block, dflash, dflash_captured, expect_switches, is_dflash, is_p_eagle, p_eagle

# ModelOpt's switches (in eagle_config) and the one value of each that our EAGLE-3 graph can express.
_REQUIRED_OPTIONS = {
    "use_aux_hidden_state": True,
    "use_last_layernorm": True,
    "use_input_layernorm_in_first_layer": True,
    "use_mtp_layernorm": False,
}


@dataclass(frozen=True)
class DraftArch:
    """Sizes and switches of an EAGLE-3 draft (arXiv 2503.01840), or of one that guesses all levels in one pass.

    layer: sizes of the draft's own transformer layers; its ``vocab`` is the target's.
    vocab: number of tokens in the draft's own (reduced) vocabulary.
    captured: target layers; the draft reads the residual stream *entering* each of them.
    norm_before_residual: the first layer's residual is the feature after ``hidden_norm``.
    fc_norm: one RMSNorm for each captured layer before fc; None if the config does not say (the tensors decide).
    norm_before_fc: one RMSNorm over all captured layers before fc; None as above.
    norm_output: the feature passed to the next draft step is the one after the final norm.
    own_embedding: the draft has a trained embedding and does not share the target's.
    one_pass: how it guesses several tokens in one pass; None for EAGLE-3. levels: how many, 0 for EAGLE-3.
    block: the attention of a DFlash draft.
    turned: the rows of the target's embedding are rotated (export/rotation), and the graph turns them back.
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
    one_pass: OnePass | None = None
    levels: int = 0
    block: Block | None = None
    turned: bool = False

    @property
    def is_dflash(self) -> bool:
        return self.one_pass is not None and self.one_pass.kind == DFLASH

    @property
    def family(self) -> str:
        """For messages."""
        return "a DFlash draft" if self.is_dflash else "a P-EAGLE draft" if self.one_pass else "an EAGLE-3 draft"


def draft_arch(config: Mapping[str, Any], target: Arch) -> DraftArch:
    """Read the config.json of a draft of any family. Raises UnsupportedModel if it is no draft of ``target`` that can be used."""
    try:
        return _dflash_arch(config, target) if is_dflash(config) else _draft_arch(config, target)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"the draft's config.json holds a value that cannot be used: {error} — download it again") from None


def _draft_arch(config: Mapping[str, Any], target: Arch) -> DraftArch:
    nested = "transformer_layer_config" in config
    kind = config.get("speculators_model_type", "eagle3")
    if kind not in ("eagle3", "peagle"):
        raise UnsupportedModel(f"the draft is a speculator of type {kind!r} — only EAGLE-3, P-EAGLE and DFlash drafts are supported")
    options: Mapping[str, Any] = config.get("eagle_config") or {}
    for name, expected in _REQUIRED_OPTIONS.items():
        if options.get(name, expected) != expected:
            raise UnsupportedModel(
                f"the draft's eagle_config has {name} = {options[name]!r} — only EAGLE-3's form ({expected}) is supported"
            )
    flat = dict(config["transformer_layer_config"] if nested else config)
    flat.setdefault("model_type", "llama")
    if not nested and not any("eagle" in name.lower() for name in config.get("architectures") or ()):
        flat["num_hidden_layers"] = 1  # EAGLE's own code always builds one layer; Vicuna-13B's config repeats the target's 40
    layer, target_hidden = _layer(config, flat, target)
    expect_switches({**flat, **config}, SCALES, "EAGLE-3")
    if "sliding_attention" in (flat.get("layer_types") or ()):
        raise UnsupportedModel("the draft's layers have a sliding window — only EAGLE-3's form (attention to all positions) is supported")

    def switch(name: str) -> bool | None:
        value = config.get(name, options.get(name))
        return None if value is None else bool(value)

    residual = switch("norm_before_residual")
    one_pass = p_eagle(config, layer.vocab) if is_p_eagle(config) else None
    return DraftArch(
        layer=layer,
        target_hidden=target_hidden,
        vocab=int(config.get("draft_vocab_size") or flat.get("draft_vocab_size") or layer.vocab),
        captured=_captured(config, options, target),
        norm_before_residual=nested and kind == "eagle3" if residual is None else residual,  # True by default in speculators' EAGLE-3
        fc_norm=switch("fc_norm"),
        norm_before_fc=switch("norm_before_fc"),
        norm_output=bool(switch("norm_output")),
        own_embedding=bool(config.get("embed_requires_grad", one_pass is not None and nested)) or layer.hidden != target.hidden,
        one_pass=one_pass,
        levels=one_pass.rows if one_pass else 0,
    )


def _dflash_arch(config: Mapping[str, Any], target: Arch) -> DraftArch:
    nested = "transformer_layer_config" in config
    flat = config["transformer_layer_config"] if nested else config
    # The sliding windows of its layers are Block's; they do not bound the context.
    layer, target_hidden = _layer(config, {**flat, "use_sliding_window": False}, target)
    one_pass, levels, block = dflash(config, flat, layer.layers, layer.vocab)
    if layer.hidden != target.hidden:
        raise UnsupportedModel(
            f"the draft's layers have {layer.hidden} numbers, the target's embedding has {target.hidden} — they do not belong together"
        )
    vocab = int(config.get("draft_vocab_size") or layer.vocab)
    captured = dflash_captured(config, target)
    return DraftArch(layer, target_hidden, vocab, captured, False, False, False, False, False, one_pass, levels, block)


def _layer(config: Mapping[str, Any], flat: Mapping[str, Any], target: Arch) -> tuple[Arch, int]:
    """Sizes of the draft's layers, and of the features that it reads. Raises UnsupportedModel unless both fit the target."""
    layer = arch_from_config(flat)
    if layer.vocab != target.vocab:
        raise UnsupportedModel(
            f"the draft is for a vocabulary of {layer.vocab} tokens, the target has {target.vocab} — they do not belong together"
        )
    target_hidden = int(config.get("target_hidden_size") or flat.get("target_hidden_size") or layer.hidden)
    if target_hidden != target.hidden:
        raise UnsupportedModel(
            f"the draft reads features of {target_hidden} numbers, the target's have {target.hidden} — they do not belong together"
        )
    return layer, target_hidden


def _captured(config: Mapping[str, Any], options: Mapping[str, Any], target: Arch) -> tuple[int, ...]:
    """Captured layers in our convention: ids of the layers that the streams *enter*.

    SpecForge and ModelOpt write ids of the layers that the streams *leave*, inside eagle_config; AngelSlim writes such ids at the top
    level, by another name. speculators write ids of the layers that they enter, at the top level. EAGLE-3's usual three layers are
    recognized by their values in any place, and meant where nothing is written.
    """
    default, key = target.captured, "eagle_aux_hidden_state_layer_ids"
    places = ((options.get(key), 1), (config.get(key), 0), (config.get("aux_hidden_states_layer_ids"), 1))
    configured, leaving = next((place for place in places if place[0] is not None), (None, 0))
    if configured is None:
        return default
    is_list = isinstance(configured, Sequence) and not isinstance(configured, str)
    if not is_list or not configured or not all(isinstance(layer, int) for layer in configured):
        raise UnsupportedModel(f"the draft's captured layer ids are {configured!r} — they must be a list of whole numbers")
    ids = tuple(sorted(set(configured)))
    if ids in (default, tuple(layer - 1 for layer in default)):
        return default
    entering = tuple(layer + leaving for layer in ids)
    if not all(0 <= layer <= target.layers for layer in entering):
        raise UnsupportedModel(f"the draft reads layers {list(ids)}, the target has {target.layers} — they do not belong together")
    return entering
