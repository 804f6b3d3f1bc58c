"""Drafts that guess several tokens in one pass, read from config.json: P-EAGLE (arXiv 2602.01469) and DFlash (arXiv 2602.06036).

P-EAGLE is an EAGLE-3 draft with a tensor ``mask_hidden`` and a mask token. The keys are those that vLLM reads (its pull request 32887), of
checkpoints by speculators (models/peagle), SpecForge (modeling/draft/peagle.py) and NeMo AutoModel. DFlash's are those of z-lab/dflash
(dflash/model.py and the published config.json), SpecForge (modeling/draft/dflash.py) and speculators (models/dflash).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.manifest.schema import DFLASH, P_EAGLE, OnePass

from ...errors import UnsupportedModel
from ..arch import Arch
from ..config_values import whole

DEFAULT_LEVELS = 8  # of a P-EAGLE draft whose config does not say; the paper and the published drafts train 8 or more
MAX_BLOCK = 64
_DEPTHS = ("num_depths", "para_depths", "para_num", "num_speculative_tokens")
_P_EAGLE_KEYS = ("ptd_token_id", "pard_token", "parallel_drafting")
_DFLASH_NAMES = ("DFlashDraftModel", "DFlashSpeculator")
# Switches of drafts, of DFlash and its relatives, and the one value of each that our graph can express.
SCALES: Mapping[str, Any] = {"final_logit_softcapping": 0, "output_multiplier": 1, "input_embedding_scale": 1, "logit_scale": 1}
_NEUTRAL: Mapping[str, Any] = {
    **SCALES,
    "use_aux_hidden_state": True,
    "fc_layernorm": False,
    "projector_type": "dflash",
    "shift_label": False,
    "pure_draft_prefix_len": 1,
}
_KNOWN_OPTIONS = {"mask_token_id", "target_layer_ids", "block_size", "sample_from_anchor", *_NEUTRAL}


@dataclass(frozen=True)
class Block:
    """Attention of a DFlash draft: for each layer, how many positions a row sees to either side (None: all), and whether it sees none
    behind its own."""

    windows: tuple[int | None, ...]
    causal: tuple[bool, ...]


def is_p_eagle(config: Mapping[str, Any]) -> bool:
    """Whether it is the config.json of a P-EAGLE draft."""
    if kind := config.get("speculators_model_type"):
        return bool(kind == "peagle")
    return _named("peagle", config) or any(map(config.get, _P_EAGLE_KEYS))


def is_dflash(config: Mapping[str, Any]) -> bool:
    """Whether it is the config.json of a DFlash draft or a relative of it."""
    if kind := config.get("speculators_model_type"):
        return bool(kind == "dflash")
    return _named("dflash", config) or "dflash_config" in config


def p_eagle(config: Mapping[str, Any], vocab: int) -> OnePass:
    """Read what a P-EAGLE draft has beside EAGLE-3's settings. Raises UnsupportedModel without a mask token."""
    proposals = (config.get("speculators_config") or {}).get("proposal_methods") or [{}]
    levels = next((config[key] for key in _DEPTHS if config.get(key)), proposals[0].get("speculative_tokens") or DEFAULT_LEVELS)
    token = next((config[key] for key in ("pard_token", "ptd_token_id", "mask_token_id") if config.get(key) is not None), None)
    return OnePass(P_EAGLE, whole({"levels": levels}, "levels", most=MAX_BLOCK), _mask_token(token, vocab))


def dflash(config: Mapping[str, Any], flat: Mapping[str, Any], layers: int, vocab: int) -> tuple[OnePass, int, Block]:
    """The block of a DFlash draft, how many of its rows guess, and its attention. ``flat``: the settings of its layers. Raises
    UnsupportedModel for a relative of DFlash."""
    options = dict(config.get("dflash_config") or {})
    names = [name for name in config.get("architectures") or () if name not in _DFLASH_NAMES]
    if names:
        raise UnsupportedModel(f"the draft is a {names[0]} — of its kind only DFlash itself is supported ({_DFLASH_NAMES[0]})")
    if unknown := sorted(options.keys() - _KNOWN_OPTIONS):
        raise UnsupportedModel(
            f"the draft's dflash_config has {unknown[0]} = {options[unknown[0]]!r}, which is not known here — not supported"
        )
    given = {**config, **options}
    expect_switches(given, _NEUTRAL, "DFlash")
    rows = whole(given, "block_size", 8 if flat is not config else 16, least=2, most=MAX_BLOCK)
    kinds = flat.get("layer_types") or ["full_attention"] * layers
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(f"the draft's layer_types are {kinds!r} — they must be full_attention or sliding_attention for each layer")
    sliding = tuple(kind == "sliding_attention" for kind in kinds)
    window = whole(flat, "sliding_window") if any(sliding) else None
    causal = False if config.get("sliding_window_non_causal") else flat.get("is_causal")
    block = Block(tuple(window if each else None for each in sliding), tuple(each if causal is None else bool(causal) for each in sliding))
    return OnePass(DFLASH, rows, _mask_token(given.get("mask_token_id"), vocab)), rows - (not given.get("sample_from_anchor")), block


def expect_switches(given: Mapping[str, Any], wanted: Mapping[str, Any], family: str) -> None:
    """Raises UnsupportedModel if a switch has another value than the ``wanted`` one."""
    for name, expected in wanted.items():
        if given.get(name) not in (None, expected):
            raise UnsupportedModel(f"the draft's config has {name} = {given[name]!r} — only {family}'s form ({expected}) is supported")


def dflash_captured(config: Mapping[str, Any], target: Arch) -> tuple[int, ...]:
    """Captured layers in our convention: ids of the layers that the streams *enter*. dflash_config has ids of the layers that they leave,
    speculators of those that they enter."""
    leaving = {**config, **(config.get("dflash_config") or {})}.get("target_layer_ids")
    ids = config.get("aux_hidden_state_layer_ids") if leaving is None else leaving
    is_list = isinstance(ids, Sequence) and not isinstance(ids, str)
    if not is_list or not ids or not all(isinstance(each, int) for each in ids) or list(ids) != sorted(set(ids)):
        raise UnsupportedModel(f"the draft's captured layer ids are {ids!r} — they must be a list of whole numbers that ascends")
    entering = tuple(each + (leaving is not None) for each in ids)
    # The last layer's output is normalized where transformers captures it, and not where vLLM does.
    if not all(0 <= layer < target.layers for layer in entering):
        raise UnsupportedModel(f"the draft reads layers {list(ids)}, the target has {target.layers} — they do not belong together")
    return entering


def _named(family: str, config: Mapping[str, Any]) -> bool:
    return any(family in str(name).lower() for name in config.get("architectures") or ())


def _mask_token(token: Any, vocab: int) -> int:
    if token is None:
        raise UnsupportedModel("the draft's config.json does not name its mask token — add mask_token_id, as the draft was trained")
    return whole({"mask_token_id": int(token)}, "mask_token_id", least=0, most=vocab - 1)
