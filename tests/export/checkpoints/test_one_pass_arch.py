"""config.json of drafts that guess all levels in one pass: what is read, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from export.checkpoints.arch import arch_from_config
from export.checkpoints.draft_arch import draft_arch
from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.fetch import open_checkpoint
from export.errors import CheckpointError, UnsupportedModel
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import OnePass
from tests.support.draft_cases import DraftCase
from tests.support.tiny_dflash import write_dflash
from tests.support.tiny_drafts import write_draft

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
}
TARGET = arch_from_config({**SIZES, "model_type": "qwen3", "num_hidden_layers": 36})
DFLASH: Mapping[str, Any] = {
    **SIZES,
    "model_type": "qwen3",
    "architectures": ["DFlashDraftModel"],
    "block_size": 16,
    "dflash_config": {"mask_token_id": 300, "target_layer_ids": [1, 9, 17, 25, 33]},
    "layer_types": ["full_attention"] * 5,
    "sliding_window": None,
    "use_sliding_window": False,
}
SPECULATORS: Mapping[str, Any] = {
    "architectures": ["DFlashSpeculator"],
    "speculators_model_type": "dflash",
    "transformer_layer_config": {**SIZES, "model_type": "qwen3"},
    "draft_vocab_size": 96,
    "aux_hidden_state_layer_ids": [2, 10, 18, 26, 34],
    "mask_token_id": 300,
}
P_EAGLE: Mapping[str, Any] = {**SIZES, "model_type": "llama", "architectures": ["LlamaForCausalLMEagle3"], "ptd_token_id": 300}


def used(**changes: Any) -> Mapping[str, Any]:
    return {**DFLASH, "dflash_config": {**DFLASH["dflash_config"], **changes}}


@pytest.mark.parametrize(
    ("config", "one_pass", "levels"),
    [
        (DFLASH, OnePass("dflash", 16, 300), 15),
        (used(block_size=8), OnePass("dflash", 8, 300), 7),
        ({**SPECULATORS, "block_size": 10}, OnePass("dflash", 10, 300), 9),
        (SPECULATORS, OnePass("dflash", 8, 300), 7),
        ({**SPECULATORS, "sample_from_anchor": True}, OnePass("dflash", 8, 300), 8),
        (P_EAGLE, OnePass("p-eagle", 8, 300), 8),
        ({**P_EAGLE, "num_depths": 10}, OnePass("p-eagle", 10, 300), 10),
        ({**P_EAGLE, "ptd_token_id": None, "parallel_drafting": True, "mask_token_id": 5}, OnePass("p-eagle", 8, 5), 8),
    ],
)
def test_block_and_levels(config: Mapping[str, Any], one_pass: OnePass, levels: int) -> None:
    arch = draft_arch(config, TARGET)
    assert (arch.one_pass, arch.levels, arch.layer.layers) == (one_pass, levels, 5)
    if one_pass.kind == "dflash":
        assert arch.captured == (2, 10, 18, 26, 34)


def test_windows_of_dflash_layers() -> None:
    kinds = ["sliding_attention"] * 4 + ["full_attention"]
    config = {**DFLASH, "layer_types": kinds, "sliding_window": 2048, "use_sliding_window": True}
    block = draft_arch(config, TARGET).block
    assert block is not None
    assert (block.windows, block.causal) == ((*[2048] * 4, None), (*[True] * 4, False))
    block = draft_arch({**config, "is_causal": False}, TARGET).block
    assert block is not None
    assert block.causal == (False,) * 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**DFLASH, "architectures": ["DFlash2DraftModel"]}, "the draft is a DFlash2DraftModel — of its kind only DFlash itself"),
        ({**SPECULATORS, "speculators_model_type": "dspark"}, "of type 'dspark' — only EAGLE-3, P-EAGLE and DFlash"),
        (used(conv_group_size=16), "dflash_config has conv_group_size = 16, which is not known here"),
        (used(final_logit_softcapping=20.0), "has final_logit_softcapping = 20.0 — only DFlash's form"),
        ({**SPECULATORS, "projector_type": "domino"}, "has projector_type = 'domino' — only DFlash's form"),
        ({**SPECULATORS, "shift_label": True}, "has shift_label = True — only DFlash's form"),
        (used(mask_token_id=None), "does not name its mask token — add mask_token_id"),
        (used(mask_token_id=320), "mask_token_id is 320, which is out of range"),
        (used(target_layer_ids=[9, 1]), r"captured layer ids are \[9, 1\] — they must be a list of whole numbers that ascends"),
        (used(target_layer_ids=[1, 35]), "reads layers .*, the target has 36"),
        (used(block_size=1), "block_size is 1, which is out of range"),
        ({**DFLASH, "layer_types": ["chunked_attention"] * 5}, "layer_types are .* — they must be full_attention or sliding_attention"),
        ({**DFLASH, "hidden_size": 128, "target_hidden_size": 64}, "layers have 128 numbers, the target's embedding has 64"),
        ({**P_EAGLE, "ptd_token_id": None, "architectures": ["PEagleDraftModel"]}, "does not name its mask token"),
    ],
)
def test_what_the_graphs_cannot_express_is_refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message) as refused:
        draft_arch(config, TARGET)
    assert "\n" not in str(refused.value)


def test_every_tensor_is_used_or_named(case: DraftCase) -> None:
    def expect(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            open_draft(case.draft, open_checkpoint(case.target))

    extra = {"layers.0.attention_conv.base_kernel": torch.zeros(2, 2, 64)}
    write_dflash(case.draft, case.model, stored=extra)
    expect(UnsupportedModel, "has tensors that a DFlash draft of this kind does not use: model.layers.0.attention_conv")
    write_dflash(case.draft, case.model, stored={"hidden_norm.weight": None})
    expect(CheckpointError, r"lacks model.hidden_norm.weight .* or not a DFlash draft")
    write_draft(case.draft, "specforge", case.model, config={"ptd_token_id": 3})
    expect(CheckpointError, r"lacks model.mask_hidden .* or not a P-EAGLE draft")
    write_draft(case.draft, "specforge", case.model, stored={"mask_hidden": torch.zeros(1, 192)})
    expect(UnsupportedModel, "an EAGLE-3 draft of this kind does not use: model.mask_hidden")


def test_dry_run_and_tensorrt(case: DraftCase) -> None:
    write_dflash(case.draft, case.model, layers=2)
    assert "of draft in int8" in case.run("--dry-run").out
    ended = case.run("--backend", "tensorrt", "--dry-run")
    case.expect_refused(ended, "draft is a DFlash draft, for which there are no TensorRT engines")


@pytest.mark.parametrize(("kind", "precision"), [("dflash", "fp16"), ("dflash", "int4"), ("p-eagle", "bf16")])
def test_other_precisions_pass_the_check(case: DraftCase, kind: str, precision: str) -> None:
    if kind == "dflash":
        write_dflash(case.draft, case.model, layers=2)
    else:
        write_draft(case.draft, "specforge", case.model, config={"ptd_token_id": 3}, stored={"mask_hidden": torch.ones(1, 192)})
    assert case.run("--draft-precision", precision).code == 0
    draft = load_manifest(case.engines / "tiny").draft
    assert draft is not None
    assert draft.one_pass is not None
    assert (draft.one_pass.kind, draft.precision) == (kind, precision)
