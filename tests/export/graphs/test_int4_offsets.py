"""Four-bit products with an offset per block: Q4_1 weights are exact, offsets have eight bits, and there is one fused product."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from export.graphs.builder import FLOAT, GraphBuilder
from export.graphs.int4_offsets import quantize_blocks_with_offset, quantize_widened, wide, widened
from export.graphs.weights import BLOCK, pack_values

OUTPUTS = 64
WIDTHS = [32, 64, 576, 1024, 1088, 1536]  # with and without zeros between the sums and behind them


def product_graph(weight: np.ndarray, integers: bool) -> onnx.ModelProto:
    """A graph that multiplies x [n, inputs] by float32 ``weight`` [outputs, inputs]. ``integers``: with 8-bit activations, as served."""
    outputs, inputs = weight.shape
    g = GraphBuilder("product")
    x = g.input("x", FLOAT, ["n", inputs])
    values, scales = quantize_widened(weight)
    packed = pack_values(values, 4).reshape(len(values), -1, BLOCK // 2)
    assert (scales.astype(np.float16) == scales).all()
    stored = g.initializer(TensorProto(name="values", data_type=TensorProto.UINT8, dims=packed.shape, raw_data=packed.tobytes()))
    sizes = {"N": outputs, "K": values.shape[1], "bits": 4, "block_size": BLOCK, "accuracy_level": 4 if integers else 1}
    rows = g.op("Shape", x, end=1)

    def zeros(width: int) -> str:
        return g.op("Expand", g.const(0, np.float32), g.op("Concat", rows, g.const([width]), axis=0))

    scale = g.const(scales.reshape(-1), np.float32)
    g.op("MatMulNBits", wide(g, x, inputs, zeros), stored, scale, domain="com.microsoft", out="product", **sizes)
    g.output("product", FLOAT, ["n", outputs])
    return g.model("test")


def session(weight: np.ndarray, integers: bool) -> onnxruntime.InferenceSession:
    model = product_graph(weight, integers).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def four_bits(random: np.random.Generator, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights as in a Q4_1 file: float32 [OUTPUTS, inputs], blocks of sixteen evenly spaced values of both signs; and the spacings
    [OUTPUTS, inputs / BLOCK], which float16 holds."""
    levels = random.integers(0, 16, (OUTPUTS, inputs // BLOCK, BLOCK))
    levels[..., :2] = 0, 15
    scale = (np.abs(random.standard_normal((OUTPUTS, inputs // BLOCK, 1))) + 0.125).astype(np.float16).astype(np.float32)
    low = -scale * random.uniform(0.5, 14.5, scale.shape).astype(np.float16).astype(np.float32)
    return (scale * levels + low).astype(np.float32).reshape(OUTPUTS, inputs), scale[..., 0]


def test_four_bits_lose_nothing_of_weights_that_had_four_bits() -> None:
    weight, distance = four_bits(np.random.default_rng(0), 128)
    values, scales, offsets = quantize_blocks_with_offset(weight)
    assert (values.min(), values.max()) == (-8, 7)
    np.testing.assert_allclose(np.abs(scales), distance, rtol=1e-5)
    restored = values.reshape(OUTPUTS, 4, BLOCK) * scales[..., None] + offsets[..., None]
    np.testing.assert_allclose(restored.reshape(OUTPUTS, -1), weight, rtol=0, atol=1e-5)
    assert (np.abs(offsets) <= 7.001 * distance).all()
    assert (scales > 0).any()
    assert (scales < 0).any()


def test_a_block_whose_offset_is_smaller_from_above_has_a_negative_scale() -> None:
    """Levels from -7 to 8: the offset would be one scale if counted from the minimum, and is zero counted from the maximum."""
    values, scales, offsets = quantize_blocks_with_offset(np.tile(np.arange(-7.0, 9.0, dtype=np.float32), (1, 2)))
    assert (scales.item(), offsets.item()) == (-1.0, 0.0)
    np.testing.assert_array_equal(values[0, :16], np.arange(7, -9, -1))


@pytest.mark.parametrize("value", [0.37, -0.37, 0.0])
def test_a_block_of_one_value_is_kept(value: float) -> None:
    values, scales, offsets = quantize_blocks_with_offset(np.full((2, BLOCK), value, np.float32))
    np.testing.assert_allclose(values * scales + offsets, np.float32(value), rtol=2**-11)  # float16 holds the scale


def test_blocks_of_one_sign_lose_no_more_than_half_a_sixteenth_of_their_largest_weight() -> None:
    random = np.random.default_rng(3)
    weight = np.concatenate([random.uniform(5.0, 5.1, (4, BLOCK)), -random.uniform(0.1, 5.0, (4, BLOCK))]).astype(np.float32)
    values, scales, offsets = quantize_blocks_with_offset(weight)
    assert np.abs(values * scales + offsets - weight).max() <= 5.1 * (1 / 30 + 2**-11)
    assert (np.abs(offsets) <= 7.01 * np.abs(scales)).all()


@pytest.mark.parametrize("inputs", WIDTHS)
def test_offsets_are_kept_to_eight_bits(inputs: int) -> None:
    """Against float64, without optimization: the error is at most half a step of a group's offsets, times the block sums."""
    random = np.random.default_rng(inputs)
    weight, distance = four_bits(random, inputs)
    x = random.standard_normal((5, inputs)).astype(np.float32)
    sums = np.abs(x.reshape(5, -1, BLOCK).astype(np.float64).sum(-1)).sum(-1, keepdims=True)
    exact = x.astype(np.float64) @ weight.T
    error = np.abs(session(weight, False).run(None, {"x": x})[0] - exact)
    assert (error <= 7 / 119 / 2 * distance.max() * sums + 1e-6 * np.abs(x).astype(np.float64) @ np.abs(weight.T)).all()
    assert error.max() > 0


@pytest.mark.parametrize("inputs", WIDTHS)
def test_a_row_has_the_same_bits_among_any_others(inputs: int) -> None:
    random = np.random.default_rng(inputs)
    weight, _ = four_bits(random, inputs)
    fused = session(weight, True)
    x = random.standard_normal((17, inputs)).astype(np.float32)
    every = fused.run(None, {"x": x})[0]
    for count in (2, 3, 5, 8, 16):  # a single row takes another kernel on some processors, and is never run (Target.use_one_kernel)
        np.testing.assert_array_equal(fused.run(None, {"x": x[:count]})[0], every[:count])
        np.testing.assert_array_equal(fused.run(None, {"x": x[-count:]})[0], every[-count:])
    exact = x.astype(np.float64) @ weight.T
    assert np.abs(every - exact).mean() < 0.02 * exact.std()  # activations are rounded to eight bits a block


@pytest.mark.parametrize("inputs", WIDTHS)
def test_widened_inputs_are_whole_groups_of_blocks(inputs: int) -> None:
    values, scales = quantize_widened(np.ones((1, inputs), np.float32))
    assert values.shape == (1, widened(inputs))
    assert scales.shape == (1, widened(inputs) // BLOCK)
    assert widened(inputs) % (4 * BLOCK) == 0
