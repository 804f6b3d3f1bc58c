"""Target graphs with lanes: every request gets the bits that it gets alone, in every precision and variant of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.graphs.lanes.writers import target_lanes
from export.parity.lane_inputs import LaneRows, chunk_inputs
from runtime.decoding.tree import Tree
from runtime.manifest.graphs import PAGE_SLOTS
from tests.support.lanes import LanesGraph
from tests.support.quantized_models import write_quantized
from tests.support.target_graphs import TargetGraph
from tests.support.tiny import VOCAB, tiny_model

CAPACITY, POOL = 512, 8
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "grouped": ("llama", {}),
    "one head each": ("llama", {"num_key_value_heads": 4}),
    "one key head": ("llama", {"num_key_value_heads": 1, "tied": False}),
    "norms": ("qwen3", {}),
    "norms, one head each": ("qwen3", {"num_key_value_heads": 4}),
    "bias": ("llama-bias", {}),
    "qkv bias": ("qwen2", {}),
    "wide heads": ("llama", {"head_dim": 100}),
}
PRECISIONS = ("fp32", "bf16", "int8", "int4")
KEPT = ("awq", "gptq desc_act", "int8 rows", "mixed")
TREES = (  # 3, 5 and 1 rows
    Tree.from_parents([5, 9, 31], [-1, 0, 0]),
    Tree.from_parents([17, 4, 90, 31, 8], [-1, 0, 0, 1, 2]),
    Tree.from_parents([44], [-1]),
)
PASTS, PAGES = (140, 300, 20), ((3, 1), (0, 5, 6), (2,))  # pages 4 and 7 belong to nobody


@dataclass
class Case:
    """The two graphs of a model, and a pool with a prompt in each of three lanes."""

    standard: TargetGraph
    lanes: LanesGraph

    def rows(self, index: int) -> LaneRows:
        return LaneRows(TREES[index], PASTS[index], PAGES[index])

    def prompt(self, index: int) -> list[int]:
        return [int(token) for token in np.random.default_rng(index).integers(0, VOCAB, PASTS[index])]

    def together(self, **how: Any) -> list[dict[str, np.ndarray]]:
        """One pass of all three on a copy of the pool; the pool is as before."""
        return self.restored(range(3), **how)

    def restored(self, chosen: Sequence[int], **how: Any) -> list[dict[str, np.ndarray]]:
        before = dict(self.lanes.cache)
        found = self.lanes.run([self.rows(index) for index in chosen], **how)
        self.lanes.cache = before
        return found


def export(directory: Path, model: Any, precision: str, **how: Any) -> tuple[TargetGraph, Path]:
    """The graph for one lane and the file of the one with lanes."""
    standard = TargetGraph(directory, model, precision, capacity=CAPACITY, **how)
    lanes = target_lanes(standard.writer)
    assert lanes is not None
    file = directory / "target.lanes.onnx"
    onnx.save(lanes, file)
    onnx.checker.check_model(str(file))
    return standard, file


def filled(standard: TargetGraph, file: Path) -> Case:
    case = Case(standard, LanesGraph(file, POOL))
    for index in range(3):
        case.lanes.prefill(case.prompt(index), PAGES[index])
    return case


def made(directory: Path, variant: str, precision: str) -> Case:
    name, special = VARIANTS[variant]
    model = tiny_model(name, **{"num_hidden_layers": 2, "max_position_embeddings": CAPACITY, **special})
    return filled(*export(directory, model, precision))


def expect_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_request_gets_the_bits_it_gets_alone(tmp_path: Path, variant: str, precision: str) -> None:
    expect_bits_of_alone(made(tmp_path, variant, precision))


@pytest.mark.parametrize("scheme", KEPT)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_integers_of_a_quantized_checkpoint_are_kept(tmp_path: Path, scheme: str, precision: str) -> None:
    model = tiny_model("llama-bias", tied=False, num_hidden_layers=2, max_position_embeddings=CAPACITY)
    write_quantized(tmp_path, model, scheme)
    case = filled(*export(tmp_path, None, precision))
    expect_bits_of_alone(case)
    expect_same_storage(case.standard, tmp_path)


def expect_bits_of_alone(case: Case) -> None:
    """Logits, features and what is written to the cache are the same together, alone, in another order, with more columns, and as the
    chunk of a prompt."""
    together = case.together()
    for index in range(3):
        (alone,) = case.restored([index])
        expect_same(alone, together[index])
    for index, found in zip((2, 0, 1), case.restored((2, 0, 1), columns=9), strict=True):
        expect_same(found, together[index])
    for order in ((0, 1, 2), (2, 0, 1), (1, 0), (1, 2)):
        for index, found in zip(order, case.restored(order, chunk_last=True), strict=True):
            expect_same(found, together[index])
    case.lanes.run([case.rows(index) for index in range(3)])
    joint = dict(case.lanes.cache)
    for index in range(3):
        case.lanes.run([case.rows(index)])
    for name, array in joint.items():
        np.testing.assert_array_equal(case.lanes.cache[name], array)
    expect_one_lanes_numbers(case, together)


def expect_one_lanes_numbers(case: Case, together: Sequence[Mapping[str, np.ndarray]]) -> None:
    """The graph for one lane gives the same logits and features; graphs with ordered sums differ by how they group them, and rounding
    amplifies that."""
    precise = case.standard.precision.matrix is None
    for index, found in enumerate(together):
        case.standard.clear()
        case.standard.prefill(case.prompt(index), 50, span=CAPACITY)
        expected = case.standard.run(TREES[index], PASTS[index], span=CAPACITY)
        for name in ("logits", "features"):
            if precise:
                np.testing.assert_allclose(found[name], expected[name][0], rtol=0, atol=1e-4)
            else:
                assert np.abs(found[name] - expected[name][0]).mean() < 0.05 * expected[name].std()


def expect_same_storage(standard: TargetGraph, directory: Path) -> None:
    """Both graphs read the same tensors at the same places of the same file, and nothing else is large."""

    def external(file: Path) -> dict[str, tuple[int, tuple[int, ...], tuple[tuple[str, str], ...]]]:
        tensors = onnx.load(file, load_external_data=False).graph.initializer
        return {
            each.name: (each.data_type, tuple(each.dims), tuple((entry.key, entry.value) for entry in each.external_data))
            for each in tensors
            if each.external_data
        }

    assert external(directory / "target.lanes.onnx") == external(standard.file)
    assert (directory / "target.lanes.onnx").stat().st_size < 100_000


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", ["bias", "norms", "one key head"])
def test_weights_are_stored_once(tmp_path: Path, variant: str, precision: str) -> None:
    name, special = VARIANTS[variant]
    standard, _ = export(tmp_path, tiny_model(name, **{"num_hidden_layers": 2, **special}), precision)
    expect_same_storage(standard, tmp_path)


def test_there_is_none_where_numbers_are_not_float32(tmp_path: Path) -> None:
    assert target_lanes(TargetGraph(tmp_path, tiny_model(num_hidden_layers=2), "fp16").writer) is None


@pytest.mark.parametrize(("precision", "exists"), [("fp32", True), ("int8", False)])
def test_there_is_none_where_scores_of_wide_heads_have_no_order(tmp_path: Path, precision: str, exists: bool) -> None:
    """Products of more than PAGE_SLOTS terms are divided into blocks by the number of threads and neighbours."""
    graph = TargetGraph(tmp_path, tiny_model(num_hidden_layers=2, head_dim=PAGE_SLOTS + 2), precision)
    assert (target_lanes(graph.writer) is not None) == exists


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", ["grouped", "one head each", "norms"])
def test_a_row_has_the_same_bits_in_a_tree_as_in_plain_decoding(tmp_path: Path, variant: str, precision: str) -> None:
    """Whatever stands between the slots of its ancestors, and in whichever column it is."""
    case = made(tmp_path, variant, precision)
    tokens, begin, pages = [7, 50, 3, 88, 120], PASTS[0], PAGES[0]
    tree = Tree.from_parents([7, 1, 50, 2, 60, 3, 61, 88, 120, 9], [-1, 0, 0, 0, 1, 2, 2, 5, 7, 8])
    path = [0, 2, 5, 7, 8]
    before = dict(case.lanes.cache)
    (in_tree,) = case.lanes.run([LaneRows(tree, begin, pages)])
    case.lanes.cache = dict(before)
    (in_chain,) = case.lanes.run([LaneRows(Tree.chain(tokens), begin, pages)])
    case.lanes.cache = dict(before)
    plain = [case.lanes.run([LaneRows(Tree.chain([token]), begin + at, pages)])[0] for at, token in enumerate(tokens)]
    for at, node in enumerate(path):
        for name, array in plain[at].items():
            np.testing.assert_array_equal(in_chain[name][at], array[0], err_msg=name)
            np.testing.assert_array_equal(in_tree[name][node], array[0], err_msg=name)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_chain_has_the_same_bits_across_pages(tmp_path: Path, precision: str) -> None:
    case = made(tmp_path, "grouped", precision)
    prompt, pages = case.prompt(1), (4, 7, 3)
    case.lanes.prefill(prompt[: PAGE_SLOTS - 2], pages)
    before = dict(case.lanes.cache)
    (chain,) = case.lanes.run([LaneRows(Tree.chain(prompt[:5]), PAGE_SLOTS - 2, pages)])
    case.lanes.cache = before
    for at, token in enumerate(prompt[:5]):
        (alone,) = case.lanes.run([LaneRows(Tree.chain([token]), PAGE_SLOTS - 2 + at, pages)])
        np.testing.assert_array_equal(chain["logits"][at], alone["logits"][0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", ["grouped", "one head each"])
def test_not_a_number_stays_in_its_lane(tmp_path: Path, variant: str, precision: str) -> None:
    """Nor does it come from pages of nobody."""
    case = made(tmp_path, variant, precision)
    expected = case.together()
    for name, array in case.lanes.cache.items():
        case.lanes.cache[name] = array.copy()
        case.lanes.cache[name][[1, 4, 7]] = np.nan  # a page of lane 0, and those of nobody
    found = case.together()
    assert np.isnan(found[0]["logits"]).all()
    for index in (1, 2):
        expect_same(found[index], expected[index])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pages_of_nobody_and_the_number_of_threads_change_nothing(tmp_path: Path, threads: int) -> None:
    case = made(tmp_path, "grouped", "int8")
    expected = case.together()
    small = LanesGraph(tmp_path / "target.lanes.onnx", 3, threads)
    for name, array in case.lanes.cache.items():
        small.cache[name] = array[[0, 5, 6]]
    (found,) = small.run([LaneRows(TREES[1], PASTS[1], (0, 1, 2))])
    expect_same(found, expected[1])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_only_the_written_rows_of_a_bound_cache_change(tmp_path: Path, precision: str) -> None:
    """With inputs and outputs bound to one buffer nothing is copied."""
    case = made(tmp_path, "grouped", precision)
    lanes = [case.rows(index) for index in range(3)]
    feeds = chunk_inputs(lanes, POOL, case.lanes.kv_heads)
    feeds["rows"] = np.arange(feeds["tokens"].shape[1])
    random, binding = np.random.default_rng(0), case.lanes.session.io_binding()
    before = {name: random.standard_normal(array.shape, np.float32) for name, array in case.lanes.cache.items()}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in {**feeds, **before}.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
        if name.startswith("past."):
            binding.bind_ortvalue_output(name.replace("past.", "present."), value)
    for name in ("next_token", "logits", "features"):
        binding.bind_output(name, "cpu")
    case.lanes.session.run_with_iobinding(binding)
    written = np.zeros((POOL, case.lanes.kv_heads, PAGE_SLOTS), bool)
    written[tuple(np.moveaxis(feeds["places"], -1, 0))] = True
    assert written.sum() == 9 * case.lanes.kv_heads
    for name, array in before.items():
        np.testing.assert_array_equal((values[name].numpy() != array).any(-1), written, err_msg=name)
