"""Reading drafts of every family: which target layers they read, and which target token each draft token is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from runtime.decoding.tree import Tree
from runtime.manifest.load import load_manifest
from tests.support.draft_cases import EVEN, DraftCase, t2d_of
from tests.support.tiny import VOCAB, reference
from tests.support.tiny_drafts import DRAFT_VOCAB, FAMILIES

PROMPT = [5, 17, 301, 44, 9]

# Layer ids in the config (at the top level?, ids) and the captured layers that they mean in our convention.
CAPTURED: Mapping[str, tuple[bool, Sequence[int] | None, tuple[int, ...]]] = {
    "none": (False, None, (2, 5, 7)),
    "usual-leaving": (False, [1, 4, 6], (2, 5, 7)),
    "usual-entering-nested": (False, [2, 5, 7], (2, 5, 7)),
    "usual-entering": (True, [2, 5, 7], (2, 5, 7)),
    "usual-leaving-at-top": (True, [1, 4, 6], (2, 5, 7)),
    "unsorted": (False, [6, 1, 4], (2, 5, 7)),
    "leaving": (False, [0, 3, 8], (1, 4, 9)),
    "entering": (True, [0, 3, 8], (0, 3, 8)),
    "two": (True, [1, 8], (1, 8)),
    "last-leaving": (False, [1, 4, 9], (2, 5, 10)),
    "last-entering": (True, [3, 10], (3, 10)),
}


@pytest.mark.parametrize("others", [{}, {"eagle_config": {"use_aux_hidden_state": True}}], ids=str)
def test_angelslims_name_for_the_layers_is_read(case: DraftCase, others: dict[str, object]) -> None:
    case.write("specforge", ids=None, config={"aux_hidden_states_layer_ids": [0, 3, 8], **others})
    assert case.run().code == 0
    assert load_manifest(case.engines / "tiny").shape.captured_layers == (1, 4, 9)


@pytest.mark.parametrize("name", CAPTURED)
def test_target_outputs_the_layers_that_the_draft_reads(case: DraftCase, name: str) -> None:
    at_top, ids, captured = CAPTURED[name]
    case.write("speculators" if at_top else "specforge", ids=ids, ids_at_top=at_top)
    assert case.run().code == 0
    manifest = load_manifest(case.engines / "tiny")
    assert manifest.shape.captured_layers == captured
    assert manifest.graphs["target"].outputs["features"].shape == (1, "n", 64 * len(captured))
    features = target_features(case.engines / "tiny")
    last: list[torch.Tensor] = []  # transformers returns the stream that leaves the last layer after the final norm; we need it before
    with torch.no_grad():
        hook = case.model.model.layers[-1].register_forward_hook(lambda *arguments: last.append(arguments[2]))
        streams = reference(case.model, PROMPT)[1]
        hook.remove()
    streams[case.model.config.num_hidden_layers] = last[0][0].numpy()
    np.testing.assert_allclose(features, np.concatenate([streams[layer] for layer in captured], axis=-1), rtol=0, atol=1e-4)


def target_features(directory: Path) -> np.ndarray:
    """The exported target's features [n, F] of PROMPT."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(directory / "target.onnx"), options, providers=["CPUExecutionProvider"])
    tree = Tree.chain(PROMPT)
    feeds: dict[str, np.ndarray] = {"tokens": tree.tokens[None], "depth": tree.depth[None], "tree_mask": tree.mask}
    feeds |= {"past": np.zeros(1, np.int64), "slots": np.arange(16), "rows": np.arange(1)}
    caches = [value.name for value in session.get_inputs() if value.name.startswith("past.")]
    feeds |= {name: np.zeros((1, 2, 16, 16), np.float32) for name in caches}
    return np.asarray(session.run(["features"], feeds)[0][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_and_ids_are_the_same_vocabulary(case: DraftCase, family: str) -> None:
    tokens = case.write(family).tokens
    assert case.tokens() == tokens.tolist()
    case.write(family, stored={"d2t": tokens, "t2d": None})
    assert case.tokens() == tokens.tolist()
    case.write(family, stored={"d2t": tokens.int(), "t2d": t2d_of(tokens)})
    assert case.tokens() == tokens.tolist()
    reversed_tokens = tokens.flip(0)
    case.write(family, stored={"d2t": reversed_tokens})
    assert case.tokens() == reversed_tokens.tolist()


@pytest.mark.parametrize("expected", [EVEN, EVEN + torch.arange(DRAFT_VOCAB)], ids=["ids", "offsets"])
def test_t2d_decides_if_d2t_can_be_read_both_ways(case: DraftCase, expected: torch.Tensor) -> None:
    case.write(stored={"d2t": EVEN, "t2d": t2d_of(expected)})
    assert case.tokens() == expected.tolist()


@pytest.mark.parametrize("stored", [{"d2t": None, "t2d": None}, {}])
def test_full_vocabulary_needs_no_d2t(case: DraftCase, stored: Mapping[str, torch.Tensor | None]) -> None:
    case.write(vocab=VOCAB, stored=stored, config={"draft_vocab_size": None})
    assert case.tokens() == list(range(VOCAB))
