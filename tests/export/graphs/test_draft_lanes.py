"""Draft graphs with lanes: every request gets the bits that it gets alone, and what the graph for one lane computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.fetch import open_checkpoint
from export.draft_build import write_draft as export_draft
from export.graphs.builder import FLOAT, FLOAT16
from export.graphs.embedding import Embedding
from export.graphs.precision import NUMPY_TYPES, PRECISIONS
from export.graphs.weights import WeightFile
from export.parity.lane_inputs import LaneRows
from runtime.decoding.tree import Tree
from tests.support.lanes import LanesGraph
from tests.support.tiny import VOCAB, write_checkpoint
from tests.support.tiny_drafts import write_draft

EMBEDDING, CONTEXT, POOL = "model.embed_tokens.weight", 400, 8
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "shared embedding": {},
    "own embedding, two layers": {"hidden": 32, "layers": 2, "embedding": "own"},
    "bias": {"bias": True},
    "norms": {"qk_norm": True, "norm_before_residual": False},
    "norm of the output": {"norm_output": True},
}
TREES = (  # 3, 5 and 1 rows
    Tree.from_parents([5, 9, 31], [-1, 0, 0]),
    Tree.from_parents([17, 4, 90, 31, 8], [-1, 0, 0, 1, 2]),
    Tree.from_parents([44], [-1]),
)
PASTS, PAGES, BEAM = (140, 300, 20), ((3, 1), (0, 5, 6), (2,)), np.arange(6)


@dataclass
class Case:
    """The graph with lanes, with a prompt in each of three lanes, and the file of the graph for one lane."""

    lanes: LanesGraph
    standard: Path

    def prompt(self, index: int) -> tuple[list[int], np.ndarray]:
        """Tokens and hidden states of the committed rows and of the tree."""
        random, count = np.random.default_rng(index), PASTS[index] + len(TREES[index])
        tokens = random.integers(0, VOCAB, PASTS[index]).tolist()
        return tokens, random.standard_normal((count, self.size), np.float32)

    @property
    def size(self) -> int:
        return int(next(each.shape[-1] for each in self.lanes.session.get_inputs() if each.name == "hidden"))

    def run(self, *chosen: int, **how: Any) -> list[dict[str, np.ndarray]]:
        """One pass on a copy of the pool; the pool is as before."""
        before = dict(self.lanes.cache)
        rows = [LaneRows(TREES[index], PASTS[index], PAGES[index]) for index in chosen]
        hidden = [self.prompt(index)[1][PASTS[index] :] for index in chosen]
        found = self.lanes.run(rows, hidden=hidden, beam=BEAM, **how)
        self.lanes.cache = before
        return found

    def one_lane(self, index: int) -> dict[str, np.ndarray]:
        """The committed rows and then the tree, in the graph for one lane."""
        session = onnxruntime.InferenceSession(str(self.standard), providers=["CPUExecutionProvider"])
        caches = {
            each.name: np.zeros((1, each.shape[1], CONTEXT, each.shape[3]), np.float32)
            for each in session.get_inputs()
            if each.name.startswith("past.")
        }
        (tokens, hidden), past = self.prompt(index), PASTS[index]
        names, found = [each.name for each in session.get_outputs()], {}
        for tree, start in ((Tree.chain(tokens), 0), (TREES[index], past)):
            place = np.array([start])
            feeds = {"past": place, "write": place, "slots": np.arange(CONTEXT), "rows": np.arange(len(tree)), "beam": BEAM}
            feeds |= {"tokens": tree.tokens[None], "hidden": hidden[None, start : start + len(tree)], "depth": tree.depth[None]}
            found = dict(zip(names, session.run(names, {**feeds, "tree_mask": tree.mask, **caches}), strict=True))
            caches = {name: found.pop(name.replace("past.", "present.")) for name in caches}
        return {name: array[0] if name == "next_hidden" else array for name, array in found.items()}


def exported(directory: Path, precision: str, target: int = FLOAT, **switches: Any) -> Path:
    """The draft's graphs. ``target``: ONNX type of the target's embedding."""
    model = write_checkpoint(directory / "target", num_hidden_layers=8)
    family = "speculators" if "hidden" in switches else "specforge"
    write_draft(directory / "draft", family, model, **switches)
    checkpoint = open_checkpoint(directory / "target")
    with WeightFile(directory / "target.data") as weights:
        table = checkpoint.read(EMBEDDING)
        embedding = Embedding(weights.add(EMBEDDING, target, table.shape, [table.astype(NUMPY_TYPES[target])]))
    kinds = {FLOAT: "fp32", FLOAT16: "fp16"}
    export_draft(directory, open_draft(directory / "draft", checkpoint), precision, PRECISIONS[kinds[target]], CONTEXT, embedding)
    return directory


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_request_gets_the_bits_it_gets_alone(tmp_path: Path, variant: str, precision: str) -> None:
    """And the numbers of the graph for one lane. Of tokens that are as probable but for rounding the order may differ."""
    directory = exported(tmp_path, precision, **VARIANTS[variant])
    case = Case(LanesGraph(directory / "draft.lanes.onnx", POOL), directory / "draft.onnx")
    for index in range(3):
        tokens, hidden = case.prompt(index)
        case.lanes.prefill(tokens, PAGES[index], hidden=hidden, beam=BEAM)
    together = case.run(0, 1, 2)
    for index, found in [*enumerate(together), *zip((2, 0, 1), case.run(2, 0, 1, columns=9), strict=True)]:
        for name, array in case.run(index)[0].items():
            assert np.isfinite(array).all()
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    tolerance = {"int8": 1e-2, "int4": 1e-1}.get(precision, 1e-4)  # activations are rounded to eight bits
    for index, found in enumerate(together):
        expected = case.one_lane(index)
        for name in ("next_hidden", "log_probs"):
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("variant", ["shared embedding", "own embedding, two layers", "norms"])
def test_weights_are_stored_once(tmp_path: Path, variant: str, precision: str) -> None:
    directory = exported(tmp_path, precision, **VARIANTS[variant])

    def external(file: str) -> dict[str, bytes]:
        tensors = onnx.load(directory / file, load_external_data=False).graph.initializer
        return {each.name: each.SerializeToString(deterministic=True) for each in tensors if each.external_data}

    assert external("draft.lanes.onnx") == external("draft.onnx")


@pytest.mark.parametrize(("precision", "target"), [("fp16", FLOAT), ("fp32", FLOAT16)])
def test_there_is_none_unless_draft_and_target_compute_in_float32(tmp_path: Path, precision: str, target: int) -> None:
    assert not (exported(tmp_path, precision, target) / "draft.lanes.onnx").exists()
