"""The target graph in 16 bits and with quantized weights: accuracy, and results that do not depend on the tree, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.graphs.weights import BLOCK
from policy import TreeSpec
from runtime.decoding.tree import Tree
from runtime.manifest.graphs import SUM_BLOCK
from tests.support.planted import PlantedDrafter
from tests.support.target_graphs import PROMPT, TargetGraph, expect_rows
from tests.support.tiny import VOCAB, reference, tiny_model, weights_of

MATRICES = ("qkv", "o", "gate_up", "down")


def test_sixteen_bit_weights_are_rounded_once(tmp_path: Path) -> None:
    """bf16 computes in float32, so it must equal the model with rounded weights. fp16 also rounds activations."""
    model = tiny_model("qwen2", tied=False)
    bf16 = TargetGraph(tmp_path / "bf16", model, "bf16")
    fp16 = TargetGraph(tmp_path / "fp16", model, "fp16")
    exact, _ = reference(model, PROMPT)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor.bfloat16().float())
    expect_rows(bf16, model, bf16.prefill(PROMPT, 4), PROMPT, range(len(PROMPT)))
    result = fp16.prefill(PROMPT, 4)
    assert (result["logits"].dtype, result["features"].dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(result["logits"][0], exact, rtol=0, atol=0.03)


def wide_inputs(x: np.ndarray) -> np.ndarray:
    """x [n, inputs], its block sums twice, each padded to whole blocks, and padding to a multiple of four blocks."""
    sums = x.reshape(len(x), -1, BLOCK).sum(-1)
    sums = np.pad(sums, ((0, 0), (0, -sums.shape[1] % BLOCK)))
    wide = np.concatenate([x, sums, sums], axis=1)
    return np.pad(wide, ((0, 0), (0, -wide.shape[1] % (4 * BLOCK))))


def dequantized(graph: TargetGraph) -> dict[str, np.ndarray]:
    """Matrices of an untied int4 graph, [inputs, outputs], and its embedding, computed from the stored integers and scales."""
    model = onnx.load(graph.file)
    arrays = {each.name: each for each in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            packed = numpy_helper.to_array(arrays[node.input[1]])  # [outputs, blocks, 16]
            name = node.input[1].removesuffix(".quantized")
            assert arrays[f"{name}.scale"].data_type == onnx.TensorProto.FLOAT16
            scales = numpy_helper.to_array(arrays[f"{name}.scale"]).astype(np.float32).reshape(*packed.shape[:2], 1)
            values = np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(*packed.shape[:2], BLOCK) - 8.0
            wide = (values * scales).reshape(len(packed), -1).T
            inputs = graph.arch.linears[name.split(".")[-1]][2]
            found[name] = wide_inputs(np.eye(inputs, dtype=np.float32)) @ wide
    head = arrays["head.quantized"]
    assert head.data_type == onnx.TensorProto.INT8
    table, scale = (numpy_helper.to_array(arrays[f"model.embed_tokens.weight.{kind}"]) for kind in ("quantized", "scale"))
    found["embedding"] = table * scale[:, None]
    return {**found, "head": numpy_helper.to_array(head) * numpy_helper.to_array(arrays["head.scale"])}


def with_matrices(model: Any, matrices: dict[str, np.ndarray]) -> Any:
    """``model`` with replaced matrices; joined ones are split again."""
    parts = {"qkv": ("self_attn", "qkv"), "o": ("self_attn", "o"), "gate_up": ("mlp", ("gate", "up")), "down": ("mlp", ("down",))}
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.from_numpy(matrices["head"].T.copy()))
        model.model.embed_tokens.weight.copy_(torch.from_numpy(matrices["embedding"]))
        for index, layer in enumerate(model.model.layers):
            for matrix, (block, names) in parts.items():
                linears = [getattr(getattr(layer, block), f"{name}_proj") for name in names]
                pieces = np.split(matrices[f"layers.{index}.{matrix}"].T, np.cumsum([each.out_features for each in linears])[:-1])
                for linear, piece in zip(linears, pieces, strict=True):
                    linear.weight.copy_(torch.from_numpy(piece.copy()))
    return model


def test_four_bits_are_the_model_dequantized(tmp_path: Path) -> None:
    """The graph with float32 activations equals transformers with the dequantized weights, except for the rounding of the head's input.
    Those weights are within one step of the original ones. For int8 see tests/export/graphs/test_int8_products.py."""
    model = tiny_model("llama-bias", tied=False)
    graph = TargetGraph(tmp_path, model, "int4", level="1")
    exact, _ = reference(model, PROMPT)
    original = weights_of(model)
    matrices = dequantized(graph)
    assert matrices.keys() == {"head", "embedding", *(f"layers.{layer}.{matrix}" for layer in range(6) for matrix in MATRICES)}
    error = np.abs(matrices["layers.3.down"].T - original["model.layers.3.mlp.down_proj.weight"])
    assert 0 < error.max() <= 1.01 / 15 * np.abs(original["model.layers.3.mlp.down_proj.weight"]).max()

    result = graph.prefill(PROMPT, 4)
    expect_rows(graph, with_matrices(model, matrices), result, PROMPT, range(len(PROMPT)), atol=1e-3 * exact.std())
    # The runtime's products round activations to eight bits.
    graph.session = graph.open("4", optimized=True)
    graph.clear()
    fused = graph.prefill(PROMPT, 4)["logits"]
    assert np.abs(fused - result["logits"]).mean() < 0.05 * exact.std()
    assert np.abs(fused[0] - exact).mean() < 0.4 * exact.std()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 16), (2, 16), (4, 16), (2, 6), (4, 24), (1, 100)])
def test_quantized_rows_are_the_same_bits_in_any_tree(tmp_path: Path, precision: str, kv_heads: int, head_dim: int) -> None:
    """In trees with every kind of gap, at the start and across a block of slots, also with one query per key head. Passes have at
    least two rows, because some processors compute a single row with another kernel (Target.use_one_kernel)."""
    model = tiny_model("llama", num_hidden_layers=2, num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=2 * SUM_BLOCK)
    graph, random = TargetGraph(tmp_path, model, precision, capacity=2 * SUM_BLOCK), np.random.default_rng(5)
    tokens = random.integers(0, VOCAB, SUM_BLOCK + 64).tolist()
    for begin in (3, SUM_BLOCK - 30):
        graph.clear()
        span = graph.capacity if begin > 3 else 64
        graph.prefill(tokens[:begin], 100, span)
        start = {name: array.copy() for name, array in graph.cache.items()}
        expected = [
            graph.run(Tree.chain([token, token]), begin + at, span)["logits"][0, 0] for at, token in enumerate(tokens[begin : begin + 50])
        ]
        graph.cache, past = start, begin
        while past < begin + 40:
            most = min(10, SUM_BLOCK - past % SUM_BLOCK)
            drafter = PlantedDrafter(0, tokens, VOCAB, past)
            drafter.begin(tokens[:past])
            tree = drafter.draft(tokens[past], TreeSpec(most, 4, 3)) if most > 1 else Tree.chain([tokens[past]] * 2)
            logits, path = graph.run(tree, past, span)["logits"][0], [0]
            while (node := tree.child(path[-1], tokens[past + len(path)])) is not None:
                path.append(node)
            np.testing.assert_array_equal(logits[path], expected[past - begin : past - begin + len(path)])
            for array in graph.cache.values():
                array[:, :, past : past + len(path)] = array[:, :, [past + row for row in path]]
            past += len(path)


def test_matrix_that_does_not_divide_into_blocks_stays_in_floating_point(tmp_path: Path) -> None:
    graph = TargetGraph(tmp_path, tiny_model("llama", intermediate_size=80, tied=False), "int4", optimized=False)
    assert "layers.0.down" not in dequantized(graph)
    assert {node.op_type for node in onnx.load(graph.file).graph.node} >= {"Gemm", "MatMulNBits"}
    assert np.isfinite(graph.prefill(PROMPT, 4)["logits"]).all()
