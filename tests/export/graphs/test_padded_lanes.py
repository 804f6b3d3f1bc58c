"""TensorRT's graphs with lanes compute in ONNX Runtime what the graphs for one lane compute, in every precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.fetch import open_checkpoint
from export.draft_build import draft_writers
from export.graphs.lanes.writers import draft_lanes, target_lanes
from export.graphs.precision import NUMPY_TYPES, TENSORRT_PRECISIONS
from export.graphs.target import TargetWriter
from export.graphs.weights import WeightFile
from export.parity.draft import cpu_type
from export.parity.lane_inputs import LaneRows, padded_inputs
from export.parity.target import tree_inputs
from runtime.decoding.tree import Tree
from tests.support.static_lanes import StaticGraph
from tests.support.tiny import VOCAB, write_checkpoint
from tests.support.tiny_drafts import write_draft

CAPACITY, SPAN, PAGES = 256, 192, 5
TREES = (  # 3, 5 and 1 rows
    Tree.from_parents([5, 9, 31], [-1, 0, 0]),
    Tree.from_parents([17, 4, 90, 31, 8], [-1, 0, 0, 1, 2]),
    Tree.from_parents([44], [-1]),
)
PASTS, PAGE_OF = (140, 100, 20), (3, 0, 2)  # pages 1 and 4 have no rows
MOST = {"fp32": 1e-4, "bf16": 1e-4, "fp16": 0.05, "fp8": 0.05, "int8": 0.05, "int4": 0.1}  # bf16 is computed in float32 here
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "grouped": ("llama", {}),
    "one head each": ("llama", {"num_key_value_heads": 4, "tied": False}),
    "norms": ("qwen3", {}),
    "bias": ("llama-bias", {}),
    "heads that Attention does not build": ("llama", {"head_dim": 100}),
}


def prompt(index: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(index).integers(0, VOCAB, PASTS[index])]


def lane(index: int) -> LaneRows:
    return LaneRows(TREES[index], PASTS[index], [PAGE_OF[index]])


def graphs(directory: Path, variant: str, precision: str) -> tuple[StaticGraph, StaticGraph]:
    """The graphs for one lane and with lanes, which has read a prompt in three of its pages."""
    name, special = VARIANTS[variant]
    write_checkpoint(directory, name, **{"num_hidden_layers": 2, **special})
    kind = TENSORRT_PRECISIONS[precision]
    checkpoint = open_checkpoint(directory)
    with WeightFile(directory / "target.data") as weights:
        writer = TargetWriter(checkpoint.arch, checkpoint, kind, CAPACITY, weights, static=True)
        list(writer.build())
    one, several = save(directory, "target", writer.model(), target_lanes(writer), NUMPY_TYPES[cpu_type(kind)])
    for index in range(3):
        several.together([LaneRows(Tree.chain(prompt(index)), 0, [PAGE_OF[index]])])
        several.lengths[PAGE_OF[index]] = PASTS[index]
    return one, several


def save(
    directory: Path, name: str, standard: onnx.ModelProto, lanes: onnx.ModelProto | None, compute: np.dtype[Any]
) -> tuple[StaticGraph, StaticGraph]:
    assert lanes is not None
    files = directory / f"{name}.onnx", directory / f"{name}.lanes.onnx"
    for file, model in zip(files, (standard, lanes), strict=True):
        onnx.save(model, file)
        onnx.checker.check_model(str(file), full_check=True)
    return StaticGraph(files[0], compute, 1, SPAN), StaticGraph(files[1], compute, PAGES, SPAN)


def expect_close(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], most: float) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.isfinite(array).all()
        np.testing.assert_allclose(found[name], array, rtol=most, atol=most, err_msg=name)


@pytest.mark.parametrize(
    ("variant", "precision"), [*((variant, "fp32") for variant in VARIANTS), *(("grouped", each) for each in MOST if each != "fp32")]
)
def test_every_request_gets_the_numbers_of_the_graph_for_one_lane(tmp_path: Path, variant: str, precision: str) -> None:
    """Any order of lanes, and more columns than rows."""
    one, several = graphs(tmp_path, variant, precision)
    before = several.cache
    expected = []
    for index, tree in enumerate(TREES):
        one.alone(Tree.chain(prompt(index)), 0)
        expected.append(one.alone(tree, PASTS[index]))
    for order, columns in (((0, 1, 2), 0), ((2, 0, 1), 0), ((1, 2), 9), ((2,), 2)):
        several.cache = dict(before)
        for index, found in zip(order, several.together([lane(index) for index in order], columns), strict=True):
            expect_close(without(found, "next_token"), without(expected[index], "next_token"), MOST[precision])


def without(found: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in found.items() if key != name}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("variant", ["grouped", "heads that Attention does not build"])
def test_not_a_number_reaches_no_other_lane(tmp_path: Path, variant: str, precision: str) -> None:
    """Nor a page without rows, whose next pass would spread it: it is not even written there."""
    _, several = graphs(tmp_path, variant, precision)
    before = dict(several.cache)
    expected = several.together([lane(index) for index in range(3)])
    for name, array in before.items():
        before[name] = array.copy()
        before[name][PAGE_OF[0], :, 7] = np.nan
    several.cache = before
    found = several.together([lane(index) for index in range(3)])
    assert np.isnan(found[0]["logits"]).all()
    for index in (1, 2):
        expect_close(found[index], expected[index], 0)
    several.cache = before
    several.together([lane(0)], columns=9)
    for name, array in several.cache.items():
        for page in (0, 2):  # nine slots of zeros behind what is committed, and nothing else
            start = several.lengths[page]
            assert not array[page, :, start : start + 9].any()
            changed = (array[page, :, :SPAN] != before[name][page, :, :SPAN]).any((0, 2))
            assert set(np.flatnonzero(changed)) <= set(range(start, start + 9))
    (alone,) = several.together([lane(1)])
    expect_close(alone, expected[1], MOST[precision])


def test_weights_are_stored_once(tmp_path: Path) -> None:
    graphs(tmp_path, "bias", "int4")
    tensors = [onnx.load(tmp_path / f"target{kind}.onnx", load_external_data=False).graph.initializer for kind in ("", ".lanes")]
    one, several = ({each.name: each.SerializeToString() for each in side if each.external_data} for side in tensors)
    assert one == several


def draft_graphs(directory: Path, precision: str, trained: int) -> tuple[StaticGraph, StaticGraph]:
    model = write_checkpoint(directory / "target", num_hidden_layers=8)
    write_draft(directory / "draft", "specforge", model, config={"max_position_embeddings": trained})
    checkpoint = open_checkpoint(directory / "target")
    draft, kind = open_draft(directory / "draft", checkpoint), TENSORRT_PRECISIONS[precision]
    with WeightFile(directory / "target.data") as weights:
        target = TargetWriter(checkpoint.arch, checkpoint, kind, CAPACITY, weights, static=True)
        list(target.build())
    with WeightFile(directory / "draft.data") as weights:
        _, writer = draft_writers(draft.arch, draft, kind, kind, CAPACITY, weights, target.embedding, True)
    return save(directory, "draft", writer.model(), draft_lanes(writer), NUMPY_TYPES[cpu_type(kind)])


@dataclass(frozen=True)
class Level:
    """Rows of the second level of a lane's tree, behind the rows of TREES."""

    tokens: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    write: int

    @classmethod
    def behind(cls, index: int) -> Level:
        random, first, count = np.random.default_rng(10 + index), len(TREES[index]), index + 1
        mask = np.hstack([random.random((count, first)) < 0.5, np.eye(count, dtype=bool)])
        return cls(random.integers(0, VOCAB, count), np.full(count, 2), mask, PASTS[index] + first)

    def alone(self) -> dict[str, np.ndarray]:
        """The inputs that differ from those of a tree, for the graph for one lane."""
        return {"depth": self.depth[None], "tree_mask": self.mask, "write": np.array([self.write])}


def together(several: StaticGraph, order: Sequence[int], **more: np.ndarray) -> list[dict[str, np.ndarray]]:
    """A pass over the levels of all lanes."""
    levels = [Level.behind(index) for index in order]
    lanes = [LaneRows(Tree.chain(each.tokens), PASTS[index], [PAGE_OF[index]]) for index, each in zip(order, levels, strict=True)]
    widest = max(each.mask.shape[1] for each in levels)
    masks = np.vstack([np.pad(each.mask, ((0, 0), (0, widest - each.mask.shape[1]))) for each in levels])
    write = np.array(several.lengths)
    write[[PAGE_OF[index] for index in order]] = [each.write for each in levels]
    positions = np.concatenate([PASTS[index] + each.depth for index, each in zip(order, levels, strict=True)])[None]
    pad = padded_inputs(lanes, several.lengths, SPAN)["pad"]
    return several.together(lanes, tree_mask=masks[pad], write=write, positions=positions, **more)


@pytest.mark.parametrize("trained", [512, 64])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_drafts_get_the_numbers_of_the_graph_for_one_lane(tmp_path: Path, precision: str, trained: int) -> None:
    """Committed rows, then two levels of a tree; also with a context beyond the length that the draft was trained for."""
    one, several = draft_graphs(tmp_path, precision, trained)
    size = next(each.shape[-1] for each in several.session.get_inputs() if each.name == "hidden")
    beam, expected, order = np.arange(6), [], (2, 0, 1)

    def hidden(index: int, count: int) -> np.ndarray:
        return np.random.default_rng([index, count]).standard_normal((1, count, size), np.float32).astype(one.compute)

    for index, tree in enumerate(TREES):
        level, tokens = Level.behind(index), Tree.chain(prompt(index))
        one.alone(tokens, 0, hidden=hidden(index, PASTS[index]), beam=beam)
        one.alone(tree, PASTS[index], hidden=hidden(index, len(tree)), beam=beam)
        rows = {**level.alone(), "hidden": hidden(index, 10)[:, : len(level.tokens)], "beam": beam}
        expected.append(one.run(tree_inputs(Tree.chain(level.tokens), PASTS[index], SPAN) | rows))
        several.together([LaneRows(tokens, 0, [PAGE_OF[index]])], hidden=hidden(index, PASTS[index]), beam=beam)
        several.lengths[PAGE_OF[index]] = PASTS[index]
    first = np.concatenate([hidden(index, len(TREES[index])) for index in order], axis=1)
    several.together([lane(index) for index in order], hidden=first, beam=beam)
    second = np.concatenate([hidden(index, 10)[:, : index + 1] for index in order], axis=1)
    for index, found in zip(order, together(several, order, hidden=second, beam=beam), strict=True):
        expect_close(without(found, "candidates"), without(expected[index], "candidates"), MOST[precision])
