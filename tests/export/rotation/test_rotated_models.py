"""Rotated targets and drafts are the same models: forward passes in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import export.parity.draft
from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.fetch import open_checkpoint
from export.checkpoints.safetensors import Checkpoint
from export.errors import UnsupportedModel
from export.graphs.precision import PRECISIONS
from export.parity.draft import reference_fuse, reference_pass
from export.parity.reference import decoder_layer, norm, reference_logits
from export.rotation.draft import rotated_draft
from export.rotation.orthogonal import rotated
from export.rotation.target import RotatedTarget
from tests.support.doubled import Doubled
from tests.support.tiny import ARCHITECTURES, VOCAB, random_ids, write_checkpoint
from tests.support.tiny_drafts import FAMILIES, write_draft

TOKENS = random_ids(12)
MASK = np.tri(len(TOKENS), dtype=bool)


def opened(directory: Path) -> Checkpoint:
    return cast("Checkpoint", Doubled(open_checkpoint(directory)))


def logits(checkpoint: Checkpoint) -> np.ndarray:
    return reference_logits(checkpoint, np.array(TOKENS), np.arange(len(TOKENS)), MASK, range(checkpoint.arch.layers))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 60, "head_dim": 24}], ids=["a power of two", "another size"])
def test_target(tmp_path: Path, kind: str, tied: bool, sizes: dict[str, Any]) -> None:
    write_checkpoint(tmp_path, kind, tied=tied, **sizes)
    plain = opened(tmp_path)
    turned = RotatedTarget(plain)
    expected = logits(plain)
    assert np.abs(logits(turned) - expected).max() < 1e-9 * np.abs(expected).max()
    assert not turned.arch.tied_head
    for name in ("model.layers.2.self_attn.v_proj.weight", "model.layers.2.mlp.down_proj.weight", "lm_head.weight"):
        whole = turned.read(name)  # slices need not end where heads do
        assert whole.shape == turned.shape(name)
        np.testing.assert_allclose(turned.read(name, 3, 21), whole[3:21], atol=1e-12)


def features(checkpoint: Checkpoint, layers: tuple[int, ...]) -> np.ndarray:
    """The streams that enter ``layers``, side by side."""
    arch, mask = checkpoint.arch, MASK
    cos, sin = (table[:, None, :] for table in arch.rope.tables(arch.head_dim, len(TOKENS)))
    hidden, found = np.concatenate([checkpoint.read("model.embed_tokens.weight", token, token + 1) for token in TOKENS]), []
    for layer in range(arch.layers):
        prefix = f"model.layers.{layer}."
        found.append(hidden)
        hidden = decoder_layer(checkpoint, arch, prefix, norm(checkpoint, arch, f"{prefix}input_layernorm", hidden), hidden, cos, sin, mask)
    return np.concatenate([found[layer] for layer in layers], axis=1)


SWITCHES: dict[str, dict[str, Any]] = {
    "own norms": {"fc_norm": True},
    "a norm before fc": {"norm_before_fc": True},
    "its own embedding": {"embedding": "own"},
}
CASES = [*((family, {}) for family in FAMILIES), *(("specforge", switches) for switches in SWITCHES.values())]


@pytest.mark.parametrize(("family", "switches"), CASES, ids=[*FAMILIES, *SWITCHES])
def test_draft(tmp_path: Path, family: str, switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.parity.draft, "rounded_embedding", lambda rows, precision: rows)
    model = write_checkpoint(tmp_path / "target", "llama", tied=False)
    write_draft(tmp_path / "draft", family, model, **switches)
    single = open_draft(tmp_path / "draft", open_checkpoint(tmp_path / "target"))
    plain = replace(single, target=opened(tmp_path / "target"), _files=cast("Any", Doubled(single._files)))
    target = RotatedTarget(plain.target)
    turned = rotated_draft(plain, target)
    results = []
    for draft, read in ((plain, plain.target), (turned, target)):
        hidden = reference_fuse(draft, features(read, draft.arch.captured))
        results.append((hidden, *reference_pass(draft, np.array(TOKENS), hidden, np.arange(len(TOKENS)), MASK, PRECISIONS["fp32"])))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_the_features_are_rotated(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama")
    plain = opened(tmp_path)
    expected = features(plain, (1, 4)).reshape(len(TOKENS), 2, -1)
    found = features(RotatedTarget(plain), (1, 4)).reshape(expected.shape)
    np.testing.assert_allclose(found, rotated(expected), atol=1e-9)


def test_two_norms_before_fc_are_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "target", "llama")
    write_draft(tmp_path / "draft", "specforge", model, fc_norm=True, norm_before_fc=True)
    target = open_checkpoint(tmp_path / "target")
    with pytest.raises(UnsupportedModel, match="export with --no-rotation"):
        rotated_draft(open_draft(tmp_path / "draft", target), RotatedTarget(target))


def test_a_head_of_the_targets_rows_is_not_rotated(tmp_path: Path) -> None:
    """A head made of the target's rows is that of the target as it was: the draft's own stream is not rotated."""
    model = write_checkpoint(tmp_path / "target", "llama", tied=False)
    write_draft(tmp_path / "draft", "specforge", model)
    target = open_checkpoint(tmp_path / "target")
    plain = replace(open_draft(tmp_path / "draft", target), own_head=False)
    np.testing.assert_array_equal(rotated_draft(plain, RotatedTarget(target)).read("lm_head.weight"), plain.read("lm_head.weight"))
    assert target.shape("lm_head.weight")[0] == VOCAB
