"""The target graph against transformers: every architecture, every precision, chains and trees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.checkpoints.safetensors import SafetensorsCheckpoint
from export.errors import CheckpointError
from export.graphs.fused import fused_target
from export.graphs.int4_offsets import widened
from export.graphs.int8_matmul import FINE
from export.graphs.layers import PRECISIONS
from export.graphs.target import TargetWriter
from export.graphs.weights import BLOCK, WeightFile
from policy import TreeSpec
from runtime.decoding.target import SUM_BLOCK
from runtime.decoding.tree import Tree
from tests.support.planted import PlantedDrafter
from tests.support.tiny import ARCHITECTURES, VOCAB, reference, tiny_model, weights_of

CAPACITY = 128
PROMPT = [int(token) for token in np.random.default_rng(1).integers(0, VOCAB, 11)]
TREE = Tree.from_parents([17, 4, 90, 31, 8, 4, 17, 55, 120], [-1, 0, 0, 1, 1, 2, 3, 5, 0])
MATRICES = ("qkv", "o", "gate_up", "down")


class Graph:
    """An exported target on disk, its session, and a cache that is handed from pass to pass."""

    def __init__(
        self, directory: Path, model: Any, precision: str = "fp32", level: str = "4", optimized: bool = True, capacity: int = CAPACITY
    ) -> None:
        model.save_pretrained(directory)
        self.checkpoint = SafetensorsCheckpoint(directory)
        self.arch, self.precision = self.checkpoint.arch, PRECISIONS[precision]
        with WeightFile(directory / "target.data") as weights:
            self.writer = writer = TargetWriter(self.arch, self.checkpoint, self.precision, capacity, weights)
            assert list(writer.build()) == list(range(1, self.arch.layers + 1))
        self.capacity = capacity
        self.file = directory / "target.onnx"
        onnx.save(writer.model(), self.file)
        self.session = self.open(level, optimized)
        self.clear()

    def open(self, level: str, optimized: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # it warns that the cache is not shared between input and output, which is intended here
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        if not optimized:  # the graph exactly as written, nothing fused
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])

    def clear(self) -> None:
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        caches = [each for each in self.session.get_inputs() if each.name.startswith("past.")]
        self.cache = {each.name: np.zeros((1, each.shape[1], self.capacity, each.shape[3]), kinds[each.type]) for each in caches}

    def run(self, tree: Tree, past: int, span: int = 64, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        feeds = {
            "tokens": tree.tokens[None],
            "depth": tree.depth[None],
            "tree_mask": tree.mask,
            "past": np.array([past]),
            "slots": np.arange(span),
            "rows": np.array(range(len(tree)) if rows is None else rows),
        }
        names = [each.name for each in self.session.get_outputs()]
        used = {name: np.ascontiguousarray(array[:, :, :span]) for name, array in self.cache.items()}
        result = dict(zip(names, self.session.run(names, {**feeds, **used}), strict=True))
        for name, array in self.cache.items():
            array[:, :, :span] = result.pop(name.replace("past.", "present."))
        return result

    def prefill(self, tokens: Sequence[int], step: int, span: int = 64) -> dict[str, np.ndarray]:
        """All rows of all chunks, joined."""
        passes = [self.run(Tree.chain(tokens[start : start + step]), start, span) for start in range(0, len(tokens), step)]
        return {name: np.concatenate([each[name] for each in passes], axis=1) for name in passes[0]}


def path_to(tree: Tree, node: int) -> list[int]:
    """Nodes from the root to ``node``."""
    return ([] if tree.parent[node] < 0 else path_to(tree, int(tree.parent[node]))) + [node]


def expect_rows(
    graph: Graph, model: Any, result: dict[str, np.ndarray], tokens: Sequence[int], rows: Sequence[int], atol: float = 1e-4
) -> None:
    """The last len(rows) positions of ``tokens`` in transformers equal ``rows`` of ``result``: logits, argmax and features."""
    logits, streams = reference(model, tokens)
    features = np.concatenate([streams[layer] for layer in graph.arch.captured], axis=-1)
    count, rows = len(rows), list(rows)
    np.testing.assert_allclose(result["logits"][0, rows], logits[-count:], rtol=0, atol=atol)
    np.testing.assert_allclose(result["features"][0, rows], features[-count:], rtol=0, atol=1e-4)
    assert result["next_token"][0, rows].tolist() == logits[-count:].argmax(-1).tolist()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chains_and_trees_equal_transformers(tmp_path: Path, name: str, tied: bool) -> None:
    model = tiny_model(name, tied=tied)
    graph = Graph(tmp_path, model)
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
    graph = Graph(tmp_path, tiny_model("llama-llama3"))
    graph.prefill(PROMPT, len(PROMPT))
    every = graph.run(TREE, len(PROMPT))
    some = graph.run(TREE, len(PROMPT), span=CAPACITY, rows=[7, 2])
    assert some["logits"].shape == (1, 2, VOCAB)
    assert some["features"].shape == (1, len(TREE), 3 * graph.arch.hidden)
    np.testing.assert_allclose(some["logits"][0], every["logits"][0, [7, 2]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(some["features"], every["features"], rtol=0, atol=1e-5)


def test_captured_layers_of_six_layers_are_the_streams_eagle_reads(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    graph = Graph(tmp_path, model)
    assert graph.arch.captured == (2, 4, 5)
    expect_rows(graph, model, graph.prefill(PROMPT, len(PROMPT)), PROMPT, range(len(PROMPT)))


def test_sixteen_bit_weights_are_rounded_once(tmp_path: Path) -> None:
    """bf16 computes in float32, so it must equal the model whose weights were rounded; fp16 rounds activations too."""
    model = tiny_model("qwen2", tied=False)
    bf16 = Graph(tmp_path / "bf16", model, "bf16")
    fp16 = Graph(tmp_path / "fp16", model, "fp16")
    exact, _ = reference(model, PROMPT)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor.bfloat16().float())
    expect_rows(bf16, model, bf16.prefill(PROMPT, 4), PROMPT, range(len(PROMPT)))
    result = fp16.prefill(PROMPT, 4)
    assert (result["logits"].dtype, result["features"].dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(result["logits"][0], exact, rtol=0, atol=0.03)


def wide_inputs(x: np.ndarray) -> np.ndarray:
    """x [n, inputs], then the sums of its blocks twice, each time filled up to whole blocks, then what is missing of four blocks."""
    sums = x.reshape(len(x), -1, BLOCK).sum(-1)
    sums = np.pad(sums, ((0, 0), (0, -sums.shape[1] % BLOCK)))
    wide = np.concatenate([x, sums, sums], axis=1)
    return np.pad(wide, ((0, 0), (0, -wide.shape[1] % (4 * BLOCK))))


def dequantized(graph: Graph) -> dict[str, np.ndarray]:
    """Matrices of an int4 graph, [inputs, outputs], computed from the stored integers and scales."""
    model = onnx.load(graph.file)
    arrays = {each.name: each for each in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            values, scales = (numpy_helper.to_array(arrays[name]).astype(np.float32) for name in node.input)
            name = node.input[0].removesuffix(".quantized")
            wide = values * np.repeat(scales, BLOCK, axis=0)
            inputs = graph.arch.linears[name.split(".")[-1]][2]
            found[name] = wide_inputs(np.eye(inputs, dtype=np.float32)) @ wide
    assert {arrays[f"{name}.quantized"].data_type for name in found} == {onnx.TensorProto.INT4}
    head = arrays["head.quantized"]
    assert head.data_type == onnx.TensorProto.INT8
    return {**found, "head": numpy_helper.to_array(head) * numpy_helper.to_array(arrays["head.scale"]) / FINE}


def with_matrices(model: Any, matrices: dict[str, np.ndarray]) -> Any:
    """``model`` with its matrices replaced, the joined ones taken apart again."""
    parts = {"qkv": ("self_attn", "qkv"), "o": ("self_attn", "o"), "gate_up": ("mlp", ("gate", "up")), "down": ("mlp", ("down",))}
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.from_numpy(matrices["head"].T.copy()))
        for index, layer in enumerate(model.model.layers):
            for matrix, (block, names) in parts.items():
                linears = [getattr(getattr(layer, block), f"{name}_proj") for name in names]
                pieces = np.split(matrices[f"layers.{index}.{matrix}"].T, np.cumsum([each.out_features for each in linears])[:-1])
                for linear, piece in zip(linears, pieces, strict=True):
                    linear.weight.copy_(torch.from_numpy(piece.copy()))
    return model


def test_four_bits_are_the_model_dequantized(tmp_path: Path) -> None:
    """The graph as the standard defines it equals transformers with the dequantized weights, but for the digits of what the head reads;
    those weights are one step from the true ones. For int8 see tests/export/graphs/test_int8_matmul.py."""
    model = tiny_model("llama-bias", tied=False)
    graph = Graph(tmp_path, model, "int4", optimized=False)
    exact, _ = reference(model, PROMPT)
    original = weights_of(model)
    matrices = dequantized(graph)
    assert matrices.keys() == {"head", *(f"layers.{layer}.{matrix}" for layer in range(6) for matrix in MATRICES)}
    error = np.abs(matrices["layers.3.down"].T - original["model.layers.3.mlp.down_proj.weight"])
    assert 0 < error.max() <= 1.001 / 15 * np.abs(original["model.layers.3.mlp.down_proj.weight"]).max()

    result = graph.prefill(PROMPT, 4)
    expect_rows(graph, with_matrices(model, matrices), result, PROMPT, range(len(PROMPT)), atol=1e-3 * exact.std())
    # The runtime's session fuses the products and rounds activations to eight bits inside them.
    graph.session = graph.open("4", optimized=True)
    graph.clear()
    fused = graph.prefill(PROMPT, 4)["logits"]
    assert np.abs(fused - result["logits"]).mean() < 0.05 * exact.std()
    assert np.abs(fused[0] - exact).mean() < 0.4 * exact.std()


def written(graph: Graph) -> dict[str, np.ndarray]:
    """What the cache holds after PROMPT and TREE."""
    return {name: array[:, :, : len(PROMPT) + len(TREE)].copy() for name, array in graph.cache.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fused_attention_gives_what_the_standard_graph_gives(tmp_path: Path, name: str) -> None:
    """Also for a tree at the very beginning, which the operator could take for a prompt, and in the cache."""
    graph = Graph(tmp_path, tiny_model(name))
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
        graph = Graph(tmp_path / precision, tiny_model(), precision)
        assert (fused_target(graph.writer) is not None) == fuses


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_quantized_rows_are_the_same_bits_in_any_tree(tmp_path: Path, precision: str, kv_heads: int) -> None:
    """In trees with every kind of gap, at the start and across the end of a stretch of slots; of four key heads each has one query."""
    model = tiny_model("llama", num_hidden_layers=2, num_key_value_heads=kv_heads, max_position_embeddings=2 * SUM_BLOCK)
    graph, random = Graph(tmp_path, model, precision, capacity=2 * SUM_BLOCK), np.random.default_rng(5)
    tokens = random.integers(0, VOCAB, SUM_BLOCK + 64).tolist()
    for begin in (3, SUM_BLOCK - 30):
        graph.clear()
        span = graph.capacity if begin > 3 else 64
        graph.prefill(tokens[:begin], 100, span)
        start = {name: array.copy() for name, array in graph.cache.items()}
        expected = [graph.run(Tree.chain([token]), begin + at, span)["logits"][0, 0] for at, token in enumerate(tokens[begin : begin + 50])]
        graph.cache, past = start, begin
        while past < begin + 40:
            most = min(10, SUM_BLOCK - past % SUM_BLOCK)
            drafter = PlantedDrafter(0, tokens, VOCAB, past)
            drafter.begin(tokens[:past])
            tree = drafter.draft(tokens[past], TreeSpec(most, 4, 3)) if most > 1 else Tree.chain([tokens[past]])
            logits, path = graph.run(tree, past, span)["logits"][0], [0]
            while (node := tree.child(path[-1], tokens[past + len(path)])) is not None:
                path.append(node)
            np.testing.assert_array_equal(logits[path], expected[past - begin : past - begin + len(path)])
            for array in graph.cache.values():
                array[:, :, past : past + len(path)] = array[:, :, [past + row for row in path]]
            past += len(path)


def test_matrix_that_does_not_divide_into_blocks_stays_in_floating_point(tmp_path: Path) -> None:
    graph = Graph(tmp_path, tiny_model("llama", intermediate_size=80), "int4", optimized=False)
    assert "layers.0.down" not in dequantized(graph)
    assert {node.op_type for node in onnx.load(graph.file).graph.node} >= {"Gemm", "MatMul"}
    assert np.isfinite(graph.prefill(PROMPT, 4)["logits"]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_graph_is_standard_and_lean(tmp_path: Path, name: str, precision: str) -> None:
    graph = Graph(tmp_path, tiny_model(name), precision)
    onnx.checker.check_model(str(graph.file))
    model = onnx.load(graph.file, load_external_data=False)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 24)]
    nodes = list(model.graph.node)
    assert {node.domain for node in nodes} == {""}

    layers, arch = graph.arch.layers, graph.arch
    stored = {each.name: tuple(each.dims) for each in model.graph.initializer}
    stored |= {
        node.output[0]: stored[node.input[0]] for node in nodes if node.op_type in ("Cast", "DequantizeLinear") if node.input[0] in stored
    }
    weighted = [node for node in nodes if node.op_type in ("MatMul", "Gemm", "MatMulInteger") and node.input[1] in stored]
    products = [sorted(stored[node.input[1]]) for node in weighted]
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


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize(
    ("key", "value", "tensor"),
    [
        ("vocab_size", VOCAB - 32, "embed_tokens"),
        ("intermediate_size", 128, "gate_proj"),
        ("num_key_value_heads", 4, "k_proj"),
        ("num_attention_heads", 8, "q_proj"),
    ],
)
def test_config_that_does_not_fit_the_weights_is_refused(tmp_path: Path, precision: str, key: str, value: int, tensor: str) -> None:
    tiny_model("qwen3", num_hidden_layers=2).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, key: value}))
    checkpoint = SafetensorsCheckpoint(tmp_path)
    with (
        WeightFile(tmp_path / "target.data") as weights,
        pytest.raises(CheckpointError, match=rf"{tensor}.* have shapes .* — config and weights differ"),
    ):
        list(TargetWriter(checkpoint.arch, checkpoint, PRECISIONS[precision], CAPACITY, weights).build())
