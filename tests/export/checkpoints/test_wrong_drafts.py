"""Drafts that cannot be right are refused: wrong vocabulary, wrong tensors, wrong target, damaged files."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.support.draft_cases import EVEN, DraftCase, t2d_of
from tests.support.tiny import VOCAB
from tests.support.tiny_drafts import DRAFT_VOCAB, FAMILIES


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"d2t": None, "t2d": None}, "but no d2t"),
        ({"d2t": EVEN, "t2d": None}, "offsets or as ids"),
        ({"d2t": EVEN + VOCAB}, "does not map to 96 distinct tokens"),
        ({"d2t": -1 - torch.arange(DRAFT_VOCAB), "t2d": None}, "does not map to 96 distinct tokens"),
        ({"d2t": -(torch.arange(DRAFT_VOCAB) // 2), "t2d": None}, "does not map to 96 distinct tokens"),
        ({"d2t": EVEN, "t2d": t2d_of(EVEN + 1)}, "does not map to 96 distinct tokens"),
        ({"d2t": EVEN, "t2d": torch.ones(VOCAB, dtype=torch.bool)}, "does not map to 96 distinct tokens"),
        ({"d2t": EVEN, "t2d": t2d_of(EVEN, VOCAB - 1)}, "does not map to 96 distinct tokens"),
        ({"d2t": EVEN[:-1]}, "95 entries"),
        ({"d2t": EVEN.repeat(2)}, "192 entries"),
    ],
)
def test_wrong_vocabulary(case: DraftCase, stored: Mapping[str, torch.Tensor | None], message: str) -> None:
    case.write(stored=stored)
    case.expect_refused(case.run(), message)


def eagle_1() -> dict[str, torch.Tensor | None]:
    """Changes that turn an EAGLE-3 draft into an EAGLE-1 draft: fc reads the embedding and one feature, and the layer has fewer norms."""
    removed = dict.fromkeys(
        ("midlayer.hidden_norm.weight", "midlayer.input_layernorm.weight", "norm.weight", "lm_head.weight", "d2t", "t2d")
    )
    return {**removed, "fc.weight": torch.zeros(64, 128), "fc.bias": torch.zeros(64)}


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"config": {"vocab_size": 2 * VOCAB}}, "vocabulary of 640 tokens, the target has 320"),
        ({"config": {"target_hidden_size": 128}}, "features of 128 numbers, the target's have 64"),
        ({"hidden": 32, "config": {"target_hidden_size": None}}, "features of 32 numbers"),
        ({"stored": {"fc.weight": torch.zeros(64, 3 * 128)}}, "fc has shape [64, 384]"),
        ({"captured": 2}, "fc has shape [64, 128]"),
        ({"stored": eagle_1()}, "not an EAGLE-3 draft"),
        ({"stored": {"midlayer.mlp.up_proj.weight": None}}, "lacks model.layers.0.mlp.up_proj.weight"),
        ({"stored": {"norm.weight": None}}, "lacks model.norm.weight"),
        ({"stored": {"lm_head.bias": torch.zeros(DRAFT_VOCAB)}}, "does not use: lm_head.bias"),
        ({"stored": {"midlayer.self_attn.q_norm.weight": torch.ones(16)}}, "does not use: model.layers.0.self_attn.q_norm.weight"),
        ({"stored": {"lm_head.weight": torch.zeros(DRAFT_VOCAB - 1, 64)}}, "config and weights differ"),
        ({"stored": {"midlayer.hidden_norm.weight": torch.ones(32)}}, "config and weights differ"),
        ({"config": {"intermediate_size": 128}}, "config and weights differ"),
        ({"config": {"num_hidden_layers": 2}}, "lacks model.layers.1."),
        ({"config": {"fc_norm": True}}, "contradictory: fc_norm is true"),
        ({"norm_before_fc": True, "config": {"norm_before_fc": False}}, "contradictory: norm_before_fc is false"),
        ({"fc_norm": True, "stored": {"fc_norm.2.weight": None}}, "lacks model.fc_norm.2.weight"),
        ({"config": {"eagle_config": {"use_mtp_layernorm": True}}}, "use_mtp_layernorm = True"),
        ({"config": {"eagle_config": {"use_aux_hidden_state": False}}}, "use_aux_hidden_state = False"),
        ({"config": {"logit_scale": 0.25}}, "logit_scale = 0.25 — only EAGLE-3's form (1) is supported"),
        ({"config": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping = 30.0 — only EAGLE-3's form (0) is supported"),
        ({"config": {"layer_types": ["sliding_attention"]}}, "have a sliding window"),
        ({"config": {"eagle_config": [1]}}, "holds a value that cannot be used"),
        ({"config": {"draft_vocab_size": "many"}}, "holds a value that cannot be used"),
        ({"config": {"draft_vocab_size": 95}}, "d2t has 96 entries, the config says 95"),
        ({"config": {"transformer_layer_config": "llama"}}, "holds a value that cannot be used"),
        ({"config": {"speculators_model_type": "eagle"}}, "speculator of type 'eagle'"),
        ({"config": {"model_type": "gpt_oss"}}, "'gpt_oss' is not supported"),
        ({"config": {"hidden_size": None}}, "lacks 'hidden_size'"),
        ({"hidden": 32}, "lacks model.embed_tokens.weight"),
        ({"hidden": 32, "embedding": "own", "own_head": False}, "has no lm_head"),
        ({"config": {"embed_requires_grad": True}}, "lacks model.embed_tokens.weight"),
        ({"ids": [1, 4, 10]}, "reads layers [1, 4, 10], the target has 10"),
        ({"ids": [-2, 4, 7]}, "reads layers [-2, 4, 7]"),
        ({"ids": [2, 5, 11], "ids_at_top": True}, "reads layers [2, 5, 11]"),
        ({"ids": ["low", "middle", "high"]}, "must be a list of whole numbers"),
        ({"config": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}}, "must be a list of whole numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_draft(case: DraftCase, switches: Mapping[str, Any], message: str) -> None:
    case.write(**switches)
    case.expect_refused(case.run(), message)


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_file(case: DraftCase, family: str) -> None:
    case.write(family)
    (file,) = (file for file in case.draft.iterdir() if file.suffix in (".bin", ".safetensors"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    case.expect_refused(case.run(), f"cannot read {file}")


def test_pickle_that_holds_more_than_tensors(case: DraftCase) -> None:
    case.write("eagle")
    file = case.draft / "pytorch_model.bin"
    torch.save({**torch.load(file, weights_only=True), "created": datetime.date(2025, 1, 1)}, file)
    case.expect_refused(case.run(), "holds more than tensors")


def test_weights_that_an_export_cannot_read(case: DraftCase) -> None:
    """As for targets: quantization is read first, numbers that are not finite and Git LFS pointers are named."""
    case.write()
    config = case.draft / "config.json"
    written = config.read_text()
    config.write_text(json.dumps({**json.loads(written), "quantization_config": {"quant_method": "hqq"}}))
    case.expect_refused(case.run(), "quantized with 'hqq', which cannot be read")
    config.write_text(written)
    case.write(stored={"fc.weight": torch.full((64, 192), float("nan"))})
    case.expect_refused(case.run(), "has numbers in fc.weight that are not finite")
    for file in case.draft.glob("*.safetensors"):
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
        case.expect_refused(case.run(), f"{file} is a Git LFS pointer")


def test_missing_draft(case: DraftCase) -> None:
    case.expect_refused(case.run(), f"there is no draft at {case.draft}")
    case.expect_refused(case.run("--dry-run"), f"there is no draft at {case.draft}")
    case.draft.write_text("{}")
    case.expect_refused(case.run(), f"there is no draft at {case.draft}")
    case.draft.unlink()
    case.draft.mkdir()
    case.expect_refused(case.run(), "config.json is missing")
    case.expect_refused(case.run("--dry-run"), "config.json is missing")
    case.write()
    (case.draft / "model.safetensors").unlink()
    case.expect_refused(case.run(), "holds no weights")
    case.expect_refused(case.run("--dry-run"), "holds no weights")


def test_weights_beyond_the_draft_precision(case: DraftCase) -> None:
    case.write(stored={"fc.weight": torch.full((64, 192), 1e6, dtype=torch.bfloat16)})
    case.expect_refused(case.run("--draft-precision", "fp16"), "choose another --draft-precision")
