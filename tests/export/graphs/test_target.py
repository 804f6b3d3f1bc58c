"""The target graph equals transformers, for every architecture and precision, on chains and trees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.errors import CheckpointError
from export.graphs.fused import fused_target
from export.graphs.int4_offsets import widened
from export.graphs.precision import PRECISIONS
from runtime.decoding.tree import Tree
from tests.support.target_graphs import CAPACITY, PROMPT, TREE, TargetGraph, expect_rows, path_to
from tests.support.tiny import ARCHITECTURES, VOCAB, tiny_model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chains_and_trees_equal_transformers(tmp_path: Path, name: str, tied: bool) -> None:
    model = tiny_model(name, tied=tied)
    graph = TargetGraph(tmp_path, model)
    assert graph.arch.tied_head == tied
    prefilled = graph.prefill(PROMPT, 4)
    expect_rows(graph, model, prefilled, PROMPT, range(len(PROMPT)))

    # A first tree at the same place leaves its rows behind in the cache: the second must not see them.
    graph.run(Tree.from_parents([3, 5, 7, 9, 11, 13, 15, 19, 21, 23], [-1, 0, 0, 0, 2, 2, 4, 4, 6, 8]), len(PROMPT))
    verified = graph.run(TREE, len(PROMPT))
    leaves = set(range(len(TREE))) - set(TREE.parent.tolist())
    for leaf in leaves:
        path = path_to(TREE, leaf)
        expect_rows(graph, model, verified, [*PROMPT, *TREE.tokens[path].tolist()], path)


def test_rows_and_span_change_the_cost_and_not_the_result(tmp_path: Path) -> None:
    graph = TargetGraph(tmp_path, tiny_model("llama-llama3"))
    graph.prefill(PROMPT, len(PROMPT))
    every = graph.run(TREE, len(PROMPT))
    some = graph.run(TREE, len(PROMPT), span=CAPACITY, rows=[7, 2])
    assert some["logits"].shape == (1, 2, VOCAB)
    assert some["features"].shape == (1, len(TREE), 3 * graph.arch.hidden)
    np.testing.assert_allclose(some["logits"][0], every["logits"][0, [7, 2]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(some["features"], every["features"], rtol=0, atol=1e-5)


def test_captured_layers_of_six_layers_are_the_streams_eagle_reads(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    graph = TargetGraph(tmp_path, model)
    assert graph.arch.captured == (2, 4, 5)
    expect_rows(graph, model, graph.prefill(PROMPT, len(PROMPT)), PROMPT, range(len(PROMPT)))


def written(graph: TargetGraph) -> dict[str, np.ndarray]:
    """The cache's contents after PROMPT and TREE."""
    return {name: array[:, :, : len(PROMPT) + len(TREE)].copy() for name, array in graph.cache.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fused_attention_gives_what_the_standard_graph_gives(tmp_path: Path, name: str) -> None:
    """Logits and cache are equal, also for a tree in an empty cache, which the operator could take for a prompt."""
    graph = TargetGraph(tmp_path, tiny_model(name))
    fused = fused_target(graph.writer)
    if graph.arch.qk_norm:
        assert fused is None
        return
    assert fused is not None
    expected = [graph.prefill(PROMPT, 4), graph.run(TREE, len(PROMPT)), written(graph), graph.run(TREE, 0)]
    graph.file = tmp_path / "fused.onnx"
    onnx.save(fused, graph.file)
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count("GroupQueryAttention") == graph.arch.layers
    assert not {"Attention", "TensorScatter", "RotaryEmbedding", "Transpose"} & set(kinds)
    graph.session = graph.open("4", optimized=True)
    graph.clear()
    actual = [graph.prefill(PROMPT, 4), graph.run(TREE, len(PROMPT)), written(graph), graph.run(TREE, 0)]
    for one, other in zip(expected, actual, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=1e-4)


def test_nothing_is_fused_where_sums_have_an_order_or_numbers_are_not_float32(tmp_path: Path) -> None:
    for precision, fuses in (("bf16", True), ("fp16", False), ("int8", False)):
        graph = TargetGraph(tmp_path / precision, tiny_model(), precision)
        assert (fused_target(graph.writer) is not None) == fuses


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[outputs, inputs] of blocks of four bits, stored as [outputs, blocks, bytes]."""
    return shape if len(shape) == 2 else (shape[0], 2 * shape[1] * shape[2])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_graph_is_standard_and_lean(tmp_path: Path, name: str, precision: str) -> None:
    graph = TargetGraph(tmp_path, tiny_model(name), precision)
    onnx.checker.check_model(str(graph.file))
    model = onnx.load(graph.file, load_external_data=False)
    assert [(each.domain, each.version) for each in model.opset_import if not each.domain] == [("", 24)]
    nodes = list(model.graph.node)
    own = {"MatMulNBits"} if precision == "int4" else set()  # the standard has no product with blocks of four bits
    assert {node.op_type for node in nodes if node.domain} == own

    layers, arch = graph.arch.layers, graph.arch
    stored = {each.name: tuple(each.dims) for each in model.graph.initializer}
    stored |= {
        node.output[0]: stored[node.input[0]] for node in nodes if node.op_type in ("Cast", "DequantizeLinear") if node.input[0] in stored
    }
    weighted = [node for node in nodes if node.op_type in ("MatMul", "Gemm", "MatMulInteger", "MatMulNBits") and node.input[1] in stored]
    products = [sorted(_matrix(stored[node.input[1]])) for node in weighted]
    wide = widened if precision == "int4" else int
    joined = [(outputs, wide(inputs)) for _, outputs, inputs in arch.linears.values()]  # qkv, o, gate and up, down: one product each
    assert products == [sorted(shape) for shape in joined] * layers + [sorted((arch.vocab, arch.hidden))]
    kinds = [node.op_type for node in nodes]
    together = precision in ("int8", "int4") and not arch.qk_norm  # queries and keys, turned by one node
    assert (kinds.count("TensorScatter"), kinds.count("RotaryEmbedding")) == (2 * layers, layers if together else 2 * layers)
    inputs, outputs = {each.name for each in model.graph.input}, {each.name for each in model.graph.output}
    for node in nodes:
        if node.op_type == "TensorScatter":  # anything in between would make the backends copy the cache
            assert node.input[0] in inputs
            assert node.output[0] in outputs


@pytest.mark.parametrize(
    ("key", "value", "tensor"),
    [
        ("vocab_size", VOCAB - 32, "embed_tokens"),
        ("intermediate_size", 128, "gate_proj"),
        ("num_key_value_heads", 4, "k_proj"),
        ("num_attention_heads", 8, "q_proj"),
    ],
)
def test_config_that_does_not_fit_the_weights_is_refused(tmp_path: Path, key: str, value: int, tensor: str) -> None:
    tiny_model("qwen3", num_hidden_layers=2).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=rf"{tensor}.* of the shape .*, config.json asks for .* — config and weights differ"):
        HuggingFaceCheckpoint(tmp_path)
