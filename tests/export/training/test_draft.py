"""The draft before training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.checkpoints.rope import Rope
from export.training.draft import DraftShape, TorchDraft
from export.training.pack import draft_config


def test_draft_begins_as_the_last_layer_of_the_target(target: HuggingFaceCheckpoint) -> None:
    arch, read_from = target.arch, target.read
    torch.manual_seed(0)
    draft = TorchDraft(DraftShape.of_target(arch), torch.tensor([3, 50, 7 * 13]))
    untouched = {name: value.clone() for name, value in draft.state_dict().items()}
    draft.init_from_target(target)
    state = draft.state_dict()
    stem = f"model.layers.{arch.layers - 1}."
    captures = torch.randn(2, 3 * arch.hidden)
    torch.testing.assert_close(draft.fc(captures), captures[:, 2 * arch.hidden :])
    for part in "qkv":
        name = f"self_attn.{part}_proj.weight"
        of_embedding, of_feature = state[f"midlayer.{name}"].chunk(2, -1)
        assert np.array_equal(of_feature, read_from(stem + name))
        torch.testing.assert_close(of_embedding, 0.1 * untouched[f"midlayer.{name}"].chunk(2, -1)[0])
    same = {name: name for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")}
    for name, source in {**same, "hidden_norm": "input_layernorm"}.items():
        assert np.array_equal(state[f"midlayer.{name}.weight"], read_from(f"{stem}{source}.weight"))
    assert np.array_equal(state["norm.weight"], read_from("model.norm.weight"))
    assert np.array_equal(state["lm_head.weight"], read_from("lm_head.weight")[[3, 50, 91]])


def test_a_draft_has_no_factors_of_a_gguf_because_its_config_cannot_say_them(target: HuggingFaceCheckpoint) -> None:
    arch = replace(target.arch, rope=replace(target.arch.rope, factors=(2.0,) * (target.arch.head_dim // 2)))
    draft = TorchDraft(DraftShape.of_target(arch), torch.arange(50))
    assert draft.shape.rope == replace(arch.rope, factors=None)
    assert Rope(*(draft_config(draft.shape)[name] for name in ("rope_theta", "rope_scaling"))) == draft.shape.rope
