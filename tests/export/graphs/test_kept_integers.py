"""Integers of a quantized checkpoint in the target's graph: they stand for the checkpoint's own weights, and it computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from policy import TreeSpec
from runtime.decoding.tree import Tree
from tests.support.kept_integers import expect_own_weights
from tests.support.planted import PlantedDrafter
from tests.support.quantized_models import SCHEMES, write_quantized
from tests.support.target_graphs import PROMPT, TargetGraph
from tests.support.tiny import VOCAB, reference, tiny_model

INTEGERS = [scheme for scheme in SCHEMES if not scheme.startswith("fp8")]


def exported(tmp_path: Path, scheme: str, precision: str, model: Any, **how: Any) -> TargetGraph:
    """The graph of a checkpoint that ``scheme`` quantizes. ``model`` then has the weights that it stands for."""
    write_quantized(tmp_path, model, scheme)
    return TargetGraph(tmp_path, None, precision, **how)


@pytest.mark.parametrize(("scheme", "precision"), [*((scheme, "int4") for scheme in INTEGERS), ("awq", "int8"), ("mixed", "int8")])
def test_stored_integers_stand_for_the_checkpoints_own_weights(tmp_path: Path, scheme: str, precision: str) -> None:
    """Only a matrix in floating point is rounded."""
    model = tiny_model("llama-bias", tied=False, num_hidden_layers=2)
    graph = exported(tmp_path, scheme, precision, model)
    own = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    expect_own_weights(graph.file, own, 2, ("v_proj.weight",) if scheme == "mixed" else ())


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
