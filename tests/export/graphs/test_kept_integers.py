"""Integers of a quantized checkpoint in the target's graph: they stand for the checkpoint's own weights, and it computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.graphs.int8_matmul import FINE
from policy import TreeSpec
from runtime.decoding.tree import Tree
from tests.support.planted import PlantedDrafter
from tests.support.quantized_models import SCHEMES, write_quantized
from tests.support.target_graphs import PROMPT, TargetGraph
from tests.support.tiny import VOCAB, reference, tiny_model

INTEGERS = [scheme for scheme in SCHEMES if not scheme.startswith("fp8")]
PARTS = {"qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "o": ("self_attn.o_proj",),
         "gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",)}  # fmt: skip


def bytes_of(packed: np.ndarray, bits: int) -> np.ndarray:
    """MatMulNBits' bytes [..., n] -> integers, the first in the low half of a byte."""
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def matrices(graph: TargetGraph) -> dict[str, np.ndarray]:
    """Every stored matrix [outputs, inputs] in float64, by ONNX Runtime's definition of its operators, inputs in the model's order."""
    model = onnx.load(graph.file)
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    found: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            stem = node.input[1].removesuffix(".quantized")
            how = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            assert how["accuracy_level"] == 4
            outputs, inputs, bits, block = how["N"], how["K"], how["bits"], how["block_size"]
            count = -(-inputs // block)
            values = bytes_of(arrays[node.input[1]].reshape(outputs, count, -1), bits).astype(np.float64)
            scale = arrays[made[node.input[2]].input[0] if node.input[2] in made else node.input[2]].astype(np.float64)
            zero = np.full((outputs, count), 2.0 ** (bits - 1))
            if len(node.input) > 3:
                zero = bytes_of(arrays[node.input[3]].reshape(outputs, -1), bits)[:, :count].astype(np.float64)
            dense = ((values - zero[..., None]) * scale.reshape(outputs, count, 1)).reshape(outputs, -1)[:, :inputs]
            found[stem] = dense
            if f"{stem}.order" in arrays:
                found[stem] = np.empty_like(dense)
                found[stem][:, arrays[f"{stem}.order"]] = dense
        elif node.op_type == "MatMulInteger":
            stem = node.input[1].removesuffix(".quantized")
            found[stem] = (arrays[node.input[1]] * (arrays[f"{stem}.scale"].astype(np.float64) / FINE)).T
    return found


def exported(tmp_path: Path, scheme: str, precision: str, model: Any, **how: Any) -> TargetGraph:
    """The graph of a checkpoint that ``scheme`` quantizes. ``model`` then has the weights that it stands for."""
    write_quantized(tmp_path, model, scheme)
    return TargetGraph(tmp_path, None, precision, **how)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("scheme", INTEGERS)
def test_stored_integers_stand_for_the_checkpoints_own_weights(tmp_path: Path, scheme: str, precision: str) -> None:
    """To within one unit in the last place of float32. Only a matrix in floating point is rounded."""
    model = tiny_model("llama-bias", tied=False, num_hidden_layers=2)
    stored = matrices(exported(tmp_path, scheme, precision, model))
    own = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    for layer in range(2):
        for matrix, parts in PARTS.items():
            stem, weights = f"layers.{layer}.{matrix}", [own[f"model.layers.{layer}.{part}.weight"] for part in parts]
            split = stem not in stored  # parts that are stored differently have a product each
            expected = {f"{stem}.{index}": each for index, each in enumerate(weights)} if split else {stem: np.concatenate(weights)}
            if scheme == "mixed" and split:
                del expected[f"{stem}.2"]  # rounded: it has no integers
            for name, weight in expected.items():
                assert (np.abs(stored[name].astype(np.float32) - weight) <= np.spacing(np.abs(weight))).all(), name


@pytest.mark.parametrize("scheme", INTEGERS)
def test_the_graph_computes_what_transformers_does_with_those_weights(tmp_path: Path, scheme: str) -> None:
    """But for activations, which are rounded to eight bits or to digits."""
    model = tiny_model("llama-bias", tied=False, num_hidden_layers=2)
    graph = exported(tmp_path, scheme, "int8", model)
    exact, _ = reference(model, PROMPT)
    logits = graph.prefill(PROMPT, 4)["logits"][0]
    assert np.abs(logits - exact).mean() < 0.05 * exact.std()


@pytest.mark.parametrize("scheme", ["fp8 rows", "fp8 blocks", "awq", "int8 rows"])
def test_floating_point_graphs_have_the_dequantized_weights(tmp_path: Path, scheme: str) -> None:
    model = tiny_model("llama", tied=False, num_hidden_layers=2)
    graph = exported(tmp_path, scheme, "fp32", model)
    exact, _ = reference(model, PROMPT)
    np.testing.assert_allclose(graph.prefill(PROMPT, 4)["logits"][0], exact, rtol=0, atol=1e-4)
    assert not {"MatMulNBits", "DequantizeLinear"} & {node.op_type for node in onnx.load(graph.file).graph.node}


@pytest.mark.parametrize("scheme", INTEGERS)
def test_rows_are_the_same_bits_in_any_tree(tmp_path: Path, scheme: str) -> None:
    """A pass has two rows at least: see Target.use_one_kernel."""
    model = tiny_model("llama", num_hidden_layers=2, max_position_embeddings=128)
    graph, random = exported(tmp_path, scheme, "int4", model), np.random.default_rng(5)
    tokens = random.integers(0, VOCAB, 60).tolist()
    graph.prefill(tokens[:3], 100)
    start = {name: array.copy() for name, array in graph.cache.items()}
    expected = [graph.run(Tree.chain([token, token]), 3 + at)["logits"][0, 0] for at, token in enumerate(tokens[3:33])]
    graph.cache, past = start, 3
    while past < 30:
        drafter = PlantedDrafter(0, tokens, VOCAB, past)
        drafter.begin(tokens[:past])
        tree = drafter.draft(tokens[past], TreeSpec(10, 4, 3))
        logits, path = graph.run(tree, past)["logits"][0], [0]
        while past + len(path) < 33 and (node := tree.child(path[-1], tokens[past + len(path)])) is not None:
            path.append(node)
        np.testing.assert_array_equal(logits[path], expected[past - 3 : past - 3 + len(path)])
        for array in graph.cache.values():
            array[:, :, past : past + len(path)] = array[:, :, [past + row for row in path]]
        past += len(path)
