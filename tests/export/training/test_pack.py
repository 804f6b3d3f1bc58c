"""The packed draft."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.checkpoints.draft_checkpoint import HEAD, open_draft
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training.errors import TrainingError
from export.training.pack import pack_run
from tests.support.training import packed, random_draft


def test_packed_draft_names_its_tokens_and_has_its_weights(tmp_path: Path, target: HuggingFaceCheckpoint) -> None:
    draft = random_draft(target.arch)
    out = packed(draft, tmp_path)
    opened, tensors = open_draft(out, target), load_file(out / "model.safetensors")
    assert opened.tokens.tolist() == draft.tokens.tolist() == (tensors["d2t"] + torch.arange(100)).tolist()
    assert tensors["t2d"].nonzero()[:, 0].tolist() == draft.tokens.tolist()
    assert opened.own_head
    assert (opened.arch.layer.rope, opened.arch.captured) == (target.arch.rope, target.arch.captured)
    assert {opened.arch.norm_before_residual, opened.arch.norm_output, opened.arch.own_embedding} == {False}
    assert np.array_equal(opened.read(HEAD), draft.lm_head.weight.detach())
    assert {each.dtype for name, each in tensors.items() if name not in ("d2t", "t2d")} == {torch.bfloat16}


def test_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"best\.pt is missing — give"):
        pack_run(tmp_path, tmp_path / "out", "specforge", "tiny/target")
    assert not (tmp_path / "out").exists()


def test_the_form_speculators_names_the_target_and_its_kind(tmp_path: Path, target: HuggingFaceCheckpoint) -> None:
    packed(random_draft(target.arch), tmp_path)
    run = tmp_path / "run"
    state = torch.load(run / "best.pt", weights_only=True)
    torch.save({**state, "target": "qwen3"}, run / "best.pt")
    with pytest.raises(TrainingError, match="give its name with --verifier"):
        pack_run(run, tmp_path / "out", "speculators", None)
    pack_run(run, tmp_path / "out", "speculators", "some/target")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_config"]["verifier"] == {"name_or_path": "some/target", "architectures": ["Qwen3ForCausalLM"]}
