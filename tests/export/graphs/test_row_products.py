"""Products for TensorRT with inputs of eight bits: as numpy rounds, the same for any number of rows, and of eight-bit numbers in a plan."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
from ml_dtypes import float8_e4m3fn
from onnx import ModelProto, numpy_helper

from export.graphs.builder import FLOAT8, FLOAT16, INT8, GraphBuilder
from export.graphs.int8.row_products import LARGEST, row_product, weight_product
from export.graphs.weights import quantize_outputs, quantize_rows
from export.parity.target import accuracy_option

INPUTS, OUTPUTS = 192, 96
kinds = pytest.mark.parametrize("kind", [INT8, FLOAT8], ids=["int8", "fp8"])


def product(weight: np.ndarray, kind: int) -> tuple[ModelProto, np.ndarray]:
    """The graph that multiplies x [n, inputs] by ``weight`` [outputs, inputs], and the weight after rounding."""
    values, scale = quantize_rows(weight) if kind == FLOAT8 else quantize_outputs(weight)
    g = GraphBuilder("product")
    x = g.input("x", FLOAT16, ["n", weight.shape[1]])
    stored = g.initializer(numpy_helper.from_array(np.ascontiguousarray(values if kind == FLOAT8 else values.T), "weight"))
    scales = g.initializer(numpy_helper.from_array(scale.astype(np.float32), "scale"))
    g.output(row_product(g, x, stored, scales, kind), FLOAT16, ["n", len(weight)])
    return g.model("test"), values.astype(np.float64) * scale.astype(np.float64)[:, None]


def computed(model: ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*accuracy_option(np.dtype(np.float16)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def rounded(x: np.ndarray, kind: int) -> np.ndarray:
    """Rows of float16 inputs as a product has them, in float64."""
    wide = x.astype(np.float32)
    step = np.abs(wide).max(-1, keepdims=True) / np.float32(LARGEST[kind])
    units = np.divide(wide, step, out=np.zeros_like(wide), where=step > 0)
    return (units.astype(float8_e4m3fn).astype(np.float64) if kind == FLOAT8 else np.rint(units).astype(np.float64)) * step


def some_rows(count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    x = random.standard_normal((count, INPUTS)) * random.uniform(0.01, 100, (count, 1))
    x[:, 5] *= 30  # an outlier, as activations have them
    x[3] = 0
    return np.asarray(x, np.float16)


def some_weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS)).astype(np.float32) * np.float32(0.02)


@kinds
def test_product_equals_numpy(kind: int) -> None:
    """Up to inputs so near to the middle between two steps that the division decides, and the rounding of the result to float16."""
    model, weight = product(some_weight(), kind)
    x = some_rows(9)
    expected, actual = rounded(x, kind) @ weight.T, computed(model, x)
    largest = np.abs(expected).max(-1, keepdims=True)
    assert np.quantile(np.abs(actual - expected) / np.maximum(largest, 1e-9), 0.95) < 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.01 * largest.max())
    assert (actual[3] == 0).all()
    assert np.abs(x.astype(np.float64) @ weight.T - expected).max() > 2e-3 * largest.max()  # inputs are rounded


@kinds
def test_a_row_has_the_same_bits_among_any_others(kind: int) -> None:
    model, _ = product(some_weight(), kind)
    x = some_rows(33)
    every = computed(model, x)
    for count in (2, 3, 8, 16, 17):
        np.testing.assert_array_equal(computed(model, x[:count]), every[:count])
        np.testing.assert_array_equal(computed(model, x[-count:]), every[-count:])


@kinds
def test_plan_multiplies_eight_bit_numbers_and_sums_in_float32(kind: int) -> None:
    """TensorRT-RTX describes its kernels in a plan. A product in float16 would overflow, and one of dequantized numbers would be slow."""
    plan = plan_of(product(some_weight(), kind)[0])
    types = dict(re.findall(r' tensor=\{[^\n]* name="([^"]*)"[^\n]* type=(\w+) \}', plan))
    (found,) = re.findall(r'fully_connected=\{ name="[^"]*" output=\{"([^"]*)" \} input=\{"([^"]*)" "([^"]*)"', plan)
    eight_bits = "fp8_e4m3" if kind == FLOAT8 else "int8"
    assert [types[name] for name in found] == ["float", eight_bits, eight_bits]


@kinds
def test_plan_dequantizes_weights_inside_the_product(kind: int) -> None:
    """Where inputs keep their type. A kernel of its own would write the whole matrix in float16 in every pass."""
    values, scale = quantize_rows(some_weight()) if kind == FLOAT8 else quantize_outputs(some_weight())
    g = GraphBuilder("product")
    stored = np.ascontiguousarray(values if kind == FLOAT8 else values.T)
    tensors = [g.initializer(numpy_helper.from_array(*each)) for each in ((stored, "weight"), (scale.astype(np.float16), "scale"))]
    g.output(weight_product(g, g.input("x", FLOAT16, ["n", INPUTS]), *tensors, kind), FLOAT16, ["n", OUTPUTS])
    plan = plan_of(g.model("test"))
    assert re.search(r"runtime_fusion=\{ name=__myl_CastMulCastFc ", plan)
    assert not re.search(r" function=\{ name=__myl_\w*Cast", plan)


def plan_of(model: ModelProto) -> str:
    """What TensorRT-RTX builds of a graph with an input x, as text."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse(model.SerializeToString())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, INPUTS), (16, INPUTS), (16, INPUTS))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return bytes(builder.build_serialized_network(network, config)).decode("latin-1")
