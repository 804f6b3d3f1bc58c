"""Integer products: accurate to two digits, and the same for any number of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.graphs.builder import FLOAT, GraphBuilder
from export.graphs.int8.products import integer_product
from export.graphs.weights import quantize_outputs
from tests.support.target_graphs import PROMPT, TargetGraph
from tests.support.tiny import reference, tiny_model, weights_of

INPUTS, OUTPUTS = 192, 96
DIGITS = 2 * 63 * 126  # two of them tell this many steps from -peak to peak


FORMS = {"two digits": (2, np.int8, 0), "one digit": (1, np.uint8, 128)}
STEPS = {"two digits": DIGITS, "one digit": 2 * 127}
forms = pytest.mark.parametrize("form", FORMS)


def product(weight: np.ndarray, form: str) -> Any:
    """A session that multiplies x [n, inputs] by float32 ``weight`` [outputs, inputs], and the weight after quantization."""
    digits, stored, added = FORMS[form]
    g = GraphBuilder("product")
    x = g.input("x", FLOAT, ["n", weight.shape[1]])
    values, scale = quantize_outputs(weight)
    weights, scales = g.const(values.T.astype(np.int16) + added, stored), g.const(scale, np.float32)
    result = integer_product(g, x, weights, scales, digits)
    g.output(result, FLOAT, ["n", len(weight)])
    session = onnxruntime.InferenceSession(g.model("test").SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {"x": rows})[0], values.astype(np.float64) * scale[:, None]


@forms
@pytest.mark.parametrize("magnitude", [1e-20, 1.0, 1e30])
def test_error_is_that_of_the_digits(magnitude: float, form: str) -> None:
    random = np.random.default_rng(0)
    multiply, weight = product(random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32), form)
    x = (magnitude * random.standard_normal((7, INPUTS))).astype(np.float32)
    x[:, 5] *= 30  # an outlier, as activations have them
    peak = np.abs(x).max(-1, keepdims=True).astype(np.float64)
    bound = (1.01 / STEPS[form] + 1e-6) * peak * np.abs(weight).sum(-1)
    error = np.abs(multiply(x) - x.astype(np.float64) @ weight.T)
    assert (error <= bound).all()
    assert error.max() > 0


@forms
def test_a_row_has_the_same_bits_among_any_others(form: str) -> None:
    random = np.random.default_rng(1)
    multiply, _ = product(random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32), form)
    x = (random.standard_normal((33, INPUTS)) * random.uniform(0.01, 100, (33, 1))).astype(np.float32)
    every = multiply(x)
    for count in (1, 2, 3, 5, 8, 16, 17):
        np.testing.assert_array_equal(multiply(x[:count]), every[:count])
        np.testing.assert_array_equal(multiply(x[-count:]), every[-count:])


@forms
def test_extreme_values_do_not_overflow(form: str) -> None:
    """All products have the same sign and the largest magnitude."""
    multiply, weight = product(np.ones((OUTPUTS, INPUTS), np.float32), form)
    x = np.stack([np.full(INPUTS, 3.0), np.full(INPUTS, -3.0), np.zeros(INPUTS)]).astype(np.float32)
    np.testing.assert_allclose(multiply(x), x @ weight.T, rtol=1e-6, atol=0)
    assert (multiply(x)[2] == 0).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_model_of_integer_products(tmp_path: Path, precision: str, tied: bool) -> None:
    """A toy model with int8 products and biases equals the same model with rounded weights."""
    model = tiny_model("qwen2", tied=tied)
    graph = TargetGraph(tmp_path, model, precision)
    nodes = [node.op_type for node in onnx.load(graph.file, load_external_data=False).graph.node]
    assert nodes.count("MatMulInteger") == (1 if precision == "int4" else 1 + 4 * graph.arch.layers)
    if precision == "int4":
        return
    import torch

    original = weights_of(model)
    exact = graph.prefill(PROMPT, 4)["logits"][0]
    with torch.no_grad():
        for name, tensor in model.named_parameters():  # a tied head is the embedding, with the same integers
            if name.endswith("_proj.weight") or name in ("lm_head.weight", "model.embed_tokens.weight"):
                values, scale = quantize_outputs(original[name])
                tensor.copy_(torch.from_numpy(values * scale[:, None]))
    expected, _ = reference(model, PROMPT)
    assert np.abs(exact - expected).max() < 0.01 * expected.std()  # what rounding activations to digits leaves
    graph.clear()
    np.testing.assert_array_equal(graph.prefill(PROMPT, 1)["logits"][0], exact)
