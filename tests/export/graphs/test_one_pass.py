"""Exported DFlash and P-EAGLE drafts in ONNX Runtime equal torch, with committed tokens that reach the cache in several passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoints.draft_checkpoint import DraftCheckpoint, open_draft
from export.checkpoints.fetch import open_checkpoint
from export.draft_build import write_draft as export_draft
from export.graphs.precision import PRECISIONS
from export.graphs.target import TargetWriter
from export.graphs.weights import WeightFile
from export.parity.draft import by_draft_id, open_session
from export.rotation.draft import rotated_draft
from export.rotation.orthogonal import rotated
from export.rotation.target import RotatedTarget
from tests.support.tiny_dflash import FORMS, MASK, TinyDFlash, write_dflash
from tests.support.tiny_drafts import DRAFT_VOCAB, TinyDraft, write_draft

SLOTS, CHUNKS = 64, (7, 1, 4)
CASES: Mapping[str, Mapping[str, Any]] = {
    **{form: {"form": form} for form in FORMS},
    "own vocabulary": {"form": "speculators", "vocab": 96, "embedding": True},
    "sliding": {"sliding": (True, False, True)},
    "sliding and not causal": {"sliding": (True, False, True), "config": {"is_causal": False}},
    "five layers": {"layers": 5, "ids": (0, 1, 2, 3, 4), "block": 16},
}


def export_to(directory: Path, draft: DraftCheckpoint) -> tuple[Any, Any]:
    """Sessions of `fuse` and `draft`, in float32. The target's graph is written only as far as they share it."""
    directory.mkdir(exist_ok=True)
    with WeightFile(directory / "target.data") as weights:
        writer = TargetWriter(draft.target.arch, draft.target, PRECISIONS["fp32"], SLOTS, weights)
        for _ in writer.build():
            pass
    export_draft(directory, draft, "fp32", PRECISIONS["fp32"], SLOTS - 16, writer.embedding)
    kind = np.dtype(np.float32)
    return open_session(directory / "fuse.onnx", kind), open_session(directory / "draft.onnx", kind)


def caches_of(session: Any) -> dict[str, np.ndarray]:
    return {
        each.name: np.zeros((1, each.shape[1], SLOTS, each.shape[3]), np.float32)
        for each in session.get_inputs()
        if each.name.startswith("past.")
    }


def int64(**values: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


def expect_blocks(draft: DraftCheckpoint, exact: TinyDFlash, directory: Path, turn: bool = False) -> None:
    """After each chunk of committed tokens, a block's log-probabilities are the reference's. ``turn``: the graph gets rotated features."""
    fuse, session = export_to(directory, draft)
    width = draft.arch.target_hidden
    features = np.random.default_rng(1).standard_normal((sum(CHUNKS), len(draft.arch.captured) * width)).astype(np.float32)
    given = rotated(features.reshape(-1, width)).reshape(features.shape) if turn else features
    caches, past = caches_of(session), 0
    for count in CHUNKS:
        (hidden,) = fuse.run(None, {"features": given[None], "rows": np.arange(past, past + count)})
        tokens = np.full(exact.block, MASK)
        tokens[0] = 10 + past
        numbers = int64(past=[past], slots=range(SLOTS), rows=range(exact.block), beam=range(len(exact.tokens)))
        outputs = session.run(None, {**numbers, "tokens": tokens[None], "hidden": hidden, **caches})
        caches, past = dict(zip(caches, outputs[2:], strict=True)), past + count
        expected = exact.forward(exact.fuse(torch.from_numpy(features[:past])), torch.from_numpy(tokens))
        np.testing.assert_allclose(by_draft_id(draft, *outputs[:2]), expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_dflash_equals_torch(ten_layer_target: tuple[Path, Any], tmp_path: Path, name: str) -> None:
    (path, model), case = ten_layer_target, dict(CASES[name])
    exact = write_dflash(tmp_path / "draft", model, **case)
    if name == "sliding and not causal":
        exact = TinyDFlash(**{**vars(exact), "causal": [False] * 3})
    draft = open_draft(tmp_path / "draft", open_checkpoint(path))
    ids = case.get("ids", (1, 3))
    assert draft.arch.captured == tuple(each + (case.get("form") != "speculators") for each in ids)
    expect_blocks(draft, exact, tmp_path / "out")


@pytest.mark.parametrize("embedding", [False, True], ids=["shared", "own"])
def test_dflash_reads_a_rotated_target_as_the_plain_one(ten_layer_target: tuple[Path, Any], tmp_path: Path, embedding: bool) -> None:
    exact = write_dflash(tmp_path / "draft", ten_layer_target[1], embedding=embedding)
    target = open_checkpoint(ten_layer_target[0])
    draft = rotated_draft(open_draft(tmp_path / "draft", target), RotatedTarget(target))
    assert draft.arch.turned != embedding
    expect_blocks(draft, exact, tmp_path / "out", turn=True)


P_EAGLE: Mapping[str, Mapping[str, Any]] = {
    "specforge": {"config": {"architectures": ["PEagleDraftModel"], "mask_token_id": MASK, "num_depths": 5}},
    "amazon": {"config": {"ptd_token_id": MASK, "num_hidden_layers": 4}, "layers": 4},
    "speculators": {
        "family": "speculators",
        "embedding": "own",
        "config": {
            "architectures": ["PEagleSpeculator"],
            "speculators_model_type": "peagle",
            "mask_token_id": MASK,
            "speculators_config": {"algorithm": "peagle", "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}]},
        },
    },
    "norms before fc": {"config": {"ptd_token_id": MASK}, "fc_norm": True},
}


def write_p_eagle(directory: Path, model: Any, case: Mapping[str, Any]) -> tuple[TinyDraft, torch.Tensor]:
    """The reference, and the learned feature [1, F], which is stored as [1, 1, F]."""
    mask = torch.randn(1, 1, 3 * model.config.hidden_size, generator=torch.Generator().manual_seed(7))
    given = {"family": "specforge", "layers": 2, **case}
    exact = write_draft(directory, target=model, stored={"mask_hidden": mask}, **given)
    return exact, mask[0]


@pytest.mark.parametrize(("name", "turn"), [*((name, False) for name in P_EAGLE), ("specforge", True), ("norms before fc", True)])
def test_p_eagle_equals_torch(ten_layer_target: tuple[Path, Any], tmp_path: Path, name: str, turn: bool) -> None:
    exact, mask = write_p_eagle(tmp_path / "draft", ten_layer_target[1], P_EAGLE[name])
    target = open_checkpoint(ten_layer_target[0])
    draft = open_draft(tmp_path / "draft", target)
    if turn:
        draft = rotated_draft(draft, RotatedTarget(target))
    assert draft.arch.one_pass is not None
    assert draft.arch.one_pass.mask_token == MASK
    assert draft.arch.levels == (5 if name in ("specforge", "speculators") else 8)
    fuse, session = export_to(tmp_path / "out", draft)
    width, levels = draft.arch.target_hidden, draft.arch.levels
    features = np.random.default_rng(1).standard_normal((sum(CHUNKS), 3 * width)).astype(np.float32)
    given = rotated(features.reshape(-1, width)).reshape(features.shape) if turn else features
    caches, past, following = caches_of(session), 0, np.arange(20, 20 + sum(CHUNKS))
    for count in CHUNKS:
        chosen = [*range(past, past + count), *[len(features)] * (levels - 1)]  # behind the features is the learned one
        (hidden,) = fuse.run(None, {"features": given[None], "rows": np.array(chosen)})
        tokens, rows = [*following[past : past + count], *[MASK] * (levels - 1)], count + levels - 1
        numbers = int64(past=[past], write=[past], slots=range(SLOTS), rows=range(count - 1, rows), beam=range(DRAFT_VOCAB))
        numbers |= int64(tokens=[tokens], depth=[range(rows)])
        outputs = session.run(None, {**numbers, "hidden": hidden, "tree_mask": np.tri(rows, dtype=bool), **caches})
        caches, past = dict(zip(caches, outputs[3:], strict=True)), past + count
        inputs = torch.cat([torch.from_numpy(features[:past]), mask.expand(levels - 1, -1)])
        total, ids = past + levels - 1, torch.tensor([*following[:past], *[MASK] * (levels - 1)])
        _, expected = exact.forward(ids, exact.fuse(inputs), torch.arange(total), torch.ones(total, total).tril().bool())
        np.testing.assert_allclose(by_draft_id(draft, *outputs[1:3]), expected[-levels:].numpy(), rtol=0, atol=1e-4)
