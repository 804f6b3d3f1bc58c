"""Every reader gives the weights that its format's definition does, for any rows, and the integers that were packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

from export.checkpoints.quantized import awq, compressed_tensors, fp8, gptq
from export.checkpoints.quantized.stored import FP8, INT4, INT8, QuantizedMatrix, dequantized_rows
from export.errors import CheckpointError, UnsupportedModel
from tests.support import packers

OUTPUTS, INPUTS = 40, 192
STEM = "model.layers.0.mlp.down_proj."


class Tensors:
    """Named arrays in place of files."""

    path = Path("somewhere")

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def stored_type(self, name: str) -> Any:
        return self.tensors[name].dtype

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.tensors[name][start:stop] if self.tensors[name].ndim else self.tensors[name]


def weight(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((OUTPUTS, INPUTS)) + random.uniform(-1, 1, (OUTPUTS, 1))).astype(np.float32)


def shuffled(inputs: int, size: int) -> np.ndarray:
    """g_idx of desc_act: groups of inputs that lie anywhere."""
    return np.random.default_rng(7).permutation(inputs)[np.arange(inputs)] // size


def only(reader: Any, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> QuantizedMatrix:
    found = reader.find(Tensors({STEM + part: array for part, array in tensors.items()}), config)
    assert list(found) == [f"{STEM}weight"]
    matrix: QuantizedMatrix = found[f"{STEM}weight"]
    assert set(matrix.tensors) == {STEM + part for part in tensors}
    return matrix


def expect(matrix: QuantizedMatrix, dense: np.ndarray, kind: str, block: int, zero_points: bool) -> None:
    assert (matrix.shape, matrix.form.kind, matrix.form.block) == (dense.shape, kind, block)
    assert matrix.form.zero_points == zero_points
    for start, stop in ((0, OUTPUTS), (0, 3), (5, 17), (OUTPUTS - 1, OUTPUTS)):
        np.testing.assert_array_equal(dequantized_rows(matrix, start, stop), dense[start:stop])
        stored = matrix.rows(start, stop)
        if kind == INT4:
            assert (stored.values.min() >= -8, stored.values.max() <= 7) == (True, True)
        if kind != FP8:
            assert stored.values.dtype == np.int8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 64, 128, -1])  # 128 does not divide the inputs: the last group is shorter
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("zero_points", [False, True])
def test_gptq(bits: int, size: int, v2: bool, zero_points: bool) -> None:
    g_idx = packers.groups_of(INPUTS, size)
    tensors, dense = packers.gptq(weight(), bits, g_idx, zero_points=zero_points, v2=v2)
    config = {"bits": bits, "group_size": size, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    kind = INT4 if bits == 4 else INT8
    expect(only(gptq, tensors, config), dense, kind, INPUTS if size == -1 else size, zero_points)
    del tensors["g_idx"]  # old files do not always have it
    expect(only(gptq, tensors, config), dense, kind, INPUTS if size == -1 else size, zero_points)


@pytest.mark.parametrize("size", [32, 128])
def test_gptq_in_the_order_of_activations(size: int) -> None:
    g_idx = shuffled(INPUTS, size)
    tensors, dense = packers.gptq(weight(), 4, g_idx)
    matrix = only(gptq, tensors, {"bits": 4, "group_size": size, "desc_act": True})
    expect(matrix, dense, INT4, size, True)
    order = matrix.form.permutation
    assert order is not None
    np.testing.assert_array_equal(matrix.rows(0, OUTPUTS).dequantized(), dense[:, order])


def test_zero_points_of_gptq_carry_from_one_to_the_next_as_its_own_tool_adds_one() -> None:
    """A zero point of 0 is stored by subtracting one from whole words, which borrows from the next."""
    g_idx = packers.groups_of(INPUTS, 64)
    tensors, dense = packers.gptq(np.abs(weight()), 4, g_idx, v2=True)  # all zero points are 0
    assert not tensors["qzeros"].any()
    tensors["qzeros"] = (tensors["qzeros"].view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    expect(only(gptq, tensors, {"bits": 4, "group_size": 64}), dense, INT4, 64, True)


@pytest.mark.parametrize("size", [32, 64, -1])
@pytest.mark.parametrize("zero_points", [False, True])
def test_awq(size: int, zero_points: bool) -> None:
    tensors, dense = packers.awq(weight(), size, zero_points=zero_points)
    config = {"bits": 4, "group_size": size, "version": "gemm", "zero_point": zero_points}
    expect(only(awq, tensors, config), dense, INT4, INPUTS if size == -1 else size, zero_points)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 64, -1])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("scale_type", [np.float16, bfloat16, np.float32])
def test_pack_quantized(bits: int, size: int, zero_points: bool, scale_type: Any) -> None:
    tensors, dense = packers.pack_quantized(weight(), bits, packers.groups_of(INPUTS, size), zero_points=zero_points, scale_type=scale_type)
    matrix = only(compressed_tensors, tensors, {"format": "pack-quantized"})
    expect(matrix, dense, INT4 if bits == 4 else INT8, INPUTS if size == -1 else size, zero_points)
    assert matrix.form.scale_type == scale_type


def test_pack_quantized_in_the_order_of_activations() -> None:
    tensors, dense = packers.pack_quantized(weight(), 4, shuffled(INPUTS, 32), zero_points=False, ordered=True)
    expect(only(compressed_tensors, tensors, {"format": "pack-quantized"}), dense, INT4, 32, False)
    tensors["weight_g_idx"] = np.full(INPUTS, -1, np.int32)  # not in use
    assert only(compressed_tensors, tensors, {"format": "pack-quantized"}).form.order is None


@pytest.mark.parametrize("size", [32, -1])
@pytest.mark.parametrize("zero_points", [False, True])
def test_int_quantized(size: int, zero_points: bool) -> None:
    tensors, dense = packers.int_quantized(weight(), size, zero_points=zero_points)
    tensors["input_scale"] = np.ones(1, np.float32)
    matrix = only(compressed_tensors, tensors, {"format": "int-quantized"})
    expect(matrix, dense, INT8, INPUTS if size == -1 else size, zero_points)


def test_four_bits_in_bytes_are_four_bits() -> None:
    values, scales, _, dense = packers.quantized(weight(), 4, packers.groups_of(INPUTS, 32), False)
    config = {"format": "naive-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}}
    tensors = {"weight": (values - 8).astype(np.int8), "weight_scale": scales}
    expect(only(compressed_tensors, tensors, config), dense, INT4, 32, False)


@pytest.mark.parametrize(("rows", "inputs"), [(OUTPUTS, INPUTS), (1, INPUTS), (16, 128), (1, 64)])
@pytest.mark.parametrize("scale_type", [np.float32, bfloat16])
def test_float_quantized(rows: int, inputs: int, scale_type: Any) -> None:
    """For the whole matrix, a row, a block (the last one shorter both ways) and a group."""
    values, scales, dense = packers.float8(weight(), rows, inputs, scale_type)
    scheme = {"num_bits": 8, "type": "float", "block_structure": [16, 128] if rows == 16 else None}
    config = {"format": "float-quantized", "config_groups": {"group_0": {"weights": scheme}}}
    for stored in [scales, *([scales[0], scales[0, 0]] if scales.size == 1 else [])]:
        expect(only(compressed_tensors, {"weight": values, "weight_scale": stored}, config), dense, FP8, inputs, False)


def test_fp8_by_blocks() -> None:
    """As DeepSeek and transformers store it, with the config's blocks."""
    values, scales, dense = packers.float8(weight(), 16, 128)
    tensors = {"weight": values, "weight_scale_inv": scales, "activation_scale": np.ones((), np.float32)}
    expect(only(fp8, tensors, {"weight_block_size": [16, 128]}), dense, FP8, 128, False)


def test_fp8_by_blocks_is_what_transformers_dequantizes() -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    values, scales, _ = packers.float8(weight(), 8, 64)
    stored = torch.from_numpy(values.view(np.uint8)).view(torch.float8_e4m3fn)
    expected = Fp8Dequantize(None)._dequantize_one(stored, torch.from_numpy(scales), torch.float32).numpy()
    expect(only(fp8, {"weight": values, "weight_scale_inv": scales}, {"weight_block_size": [8, 64]}), expected, FP8, 64, False)


@pytest.mark.parametrize("shape", [(), (1,), (OUTPUTS,), (OUTPUTS, 1)])
def test_fp8_by_rows_and_whole(shape: tuple[int, ...]) -> None:
    values, scales, dense = packers.float8(weight(), OUTPUTS if np.prod(shape) == 1 else 1, INPUTS)
    expect(only(fp8, {"weight": values, "weight_scale": scales.reshape(shape)}, {}), dense, FP8, INPUTS, False)


def test_scales_that_are_exponents_of_two() -> None:
    values, _, _ = packers.float8(weight(), 16, 64)
    exponents = np.random.default_rng(0).integers(110, 125, (3, 3)).astype(np.uint8)
    full = np.exp2(np.repeat(np.repeat(exponents.astype(np.float64) - 127, 16, 0)[:OUTPUTS], 64, 1))
    dense = (values.astype(np.float64) * full).astype(np.float32)
    expect(only(fp8, {"weight": values, "weight_scale_inv": exponents}, {"weight_block_size": [16, 64]}), dense, FP8, 64, False)


def broken(kind: str) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """Reader, tensors and config of a checkpoint with one fault."""
    g_idx = packers.groups_of(INPUTS, 64)
    tensors, _ = packers.gptq(weight(), 4, g_idx)
    packed, _ = packers.pack_quantized(weight(), 4, g_idx, zero_points=True)
    config: dict[str, Any] = {"bits": 4, "group_size": 64}
    cases: dict[str, tuple[Any, dict[str, np.ndarray], dict[str, Any]]] = {
        "scales are missing": (gptq, {part: tensors[part] for part in ("qweight", "qzeros")}, config),
        "a zero point is missing": (gptq, {**tensors, "qzeros": tensors["qzeros"][:-1]}, config),
        "groups of different sizes": (gptq, {**tensors, "g_idx": np.minimum(np.arange(INPUTS) // 50, 2).astype(np.int32)}, config),
        "no groups": (awq, {**packers.awq(weight(), 64)[0], "scales": np.ones((5, OUTPUTS), np.float16)}, config),
        "no shape": (compressed_tensors, {part: packed[part] for part in ("weight_packed", "weight_scale")}, {}),
        "rows without scales": (compressed_tensors, {**packed, "weight_scale": packed["weight_scale"][:-1]}, {}),
        "float8 without scales": (fp8, {"weight": packers.float8(weight(), 1, INPUTS)[0]}, {}),
        "scales of another matrix": (fp8, {"weight": packers.float8(weight(), 1, INPUTS)[0], "weight_scale": np.ones(7, np.float32)}, {}),
    }
    return cases[kind]


@pytest.mark.parametrize(
    "kind",
    ["scales are missing", "a zero point is missing", "groups of different sizes", "no groups", "no shape", "rows without scales",
     "float8 without scales", "scales of another matrix"],
)  # fmt: skip
def test_tensors_that_contradict_each_other_are_refused(kind: str) -> None:
    reader, tensors, config = broken(kind)
    with pytest.raises(CheckpointError, match=r"down_proj.* — .*download it again"):
        _ = only(reader, tensors, config).form


@pytest.mark.parametrize(
    ("reader", "tensors", "config"),
    [
        (gptq, {"qweight": np.zeros((INPUTS * 3 // 32, OUTPUTS), np.int32), "g_idx": np.zeros(INPUTS, np.int32), "qzeros": np.zeros(1),
                "scales": np.zeros(1)}, {"bits": 3}),
        (compressed_tensors, {"weight": weight(), "weight_scale": np.ones((OUTPUTS, 1), np.float32)}, {}),
        (compressed_tensors, {"weight_packed": np.zeros((OUTPUTS, INPUTS * 2 // 32), np.int32), "weight_scale": np.ones((OUTPUTS, 1)),
                              "weight_shape": np.array([OUTPUTS, INPUTS])}, {}),
    ],
)  # fmt: skip
def test_what_is_stored_otherwise_is_refused_by_name(reader: Any, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r" — (export from|save it)"):
        _ = only(reader, tensors, config).form


@pytest.mark.parametrize(
    ("method", "config", "named"),
    [
        (gptq, {"bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        (gptq, {"bits": 4, "is_marlin_format": True}, "marlin"),
        (awq, {"bits": 4, "version": "gemv"}, "gemv"),
        (awq, {"w_bit": 3, "version": "GEMM"}, "3 bits"),
        (fp8, {"quant_algo": "NVFP4"}, "NVFP4"),
        (fp8, {"fmt": "e5m2"}, "e5m2"),
        (compressed_tensors, {"format": "nvfp4-pack-quantized"}, "nvfp4"),
        (compressed_tensors, {"format": "marlin-24"}, "marlin-24"),
        (compressed_tensors, {"format": "mixed-precision", "config_groups": {"group_0": {"format": "mxfp4-pack-quantized"}}}, "mxfp4"),
        (compressed_tensors, {"format": "dense", "sparsity_config": {"format": "sparse-bitmask"}}, "sparse-bitmask"),
        (compressed_tensors, {"format": "pack-quantized", "transform_config": {"config_groups": {"R1": {}}}}, "transform"),
    ],
)
def test_settings_that_are_not_read_are_refused_by_name(method: Any, config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"^here .*{named}.* — export from "):
        method.check(config, "here")


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (gptq, {"bits": 4, "group_size": 128}),
        (gptq, {"bits": 4, "checkpoint_format": "gptq_v2"}),
        (awq, {"bits": 4, "version": "GEMM"}),
        (fp8, {"fmt": "e4m3", "weight_block_size": [128, 128]}),
        (fp8, {"quant_algo": "FP8"}),
        (compressed_tensors, {"format": "pack-quantized", "sparsity_config": {"format": "dense"}, "config_groups": {"group_0": {}}}),
    ],
)
def test_settings_that_are_read_pass(method: Any, config: dict[str, Any]) -> None:
    method.check(config, "here")
