"""Block quantization, packing, and the external weight file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.errors import ParityError
from export.graphs import weights
from export.graphs.weights import ALIGNMENT, BLOCK, WeightFile, pack_int4, quantize_blocks, row_chunks
from tests.support.tiny import tiny_model, weights_of


def restored(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return values * np.repeat(scales, BLOCK, axis=1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1.0, 1e6])
def test_quantization_error_is_bounded_by_half_a_step(bits: int, magnitude: float) -> None:
    weight = (np.random.default_rng(bits).standard_normal((48, 96)) * magnitude).astype(np.float32)
    values, scales = quantize_blocks(weight, bits)
    assert (values.dtype, values.shape) == (np.int8, weight.shape)
    assert (scales.dtype, scales.shape) == (np.float32, (48, 3))
    error = np.abs(restored(values, scales) - weight)
    step = np.repeat(np.abs(scales), BLOCK, axis=1)
    clipped = values == 7 if bits == 4 else np.zeros_like(values, bool)  # -8 … 7 has no +8: only there a whole step may be lost
    assert (error[~clipped] <= 0.5001 * step[~clipped]).all()
    assert (error[clipped] <= 1.0001 * step[clipped]).all()
    peaks = np.abs(weight.reshape(48, 3, BLOCK)).max(-1)
    np.testing.assert_allclose(np.abs(scales), peaks / (8 if bits == 4 else 127), rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_entry_of_a_block_is_kept(bits: int, sign: int) -> None:
    """Whatever its sign: in four bits a negative scale maps it to -8, because there is no level +8."""
    weight = np.random.default_rng(0).uniform(-1, 1, (8, BLOCK)).astype(np.float32)
    weight[:, 5] = 3.7 * sign
    values, scales = quantize_blocks(weight, bits)
    np.testing.assert_allclose(restored(values, scales)[:, 5], weight[:, 5], rtol=1e-6)
    assert set(values[:, 5]) == {-8 if bits == 4 else 127 * sign}


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_representable_comes_back_exactly(bits: int) -> None:
    levels = np.arange(-8, 8) if bits == 4 else np.arange(-127, 128, 8)[:16]
    weight = np.tile(levels, (4, 2)).astype(np.float32) * 0.25
    weight[:, ::16] = levels[0] * 0.25
    values, scales = quantize_blocks(weight, bits)
    assert (restored(values, scales) == weight).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_of_zeros_stays_zero_and_finite(bits: int) -> None:
    weight = np.zeros((2, 2 * BLOCK), np.float32)
    weight[0, BLOCK:] = 1.0
    values, scales = quantize_blocks(weight, bits)
    assert np.isfinite(scales).all()
    assert (scales != 0).all()
    assert (restored(values, scales) == weight).all()


@pytest.mark.parametrize("shape", [(16,), (7,), (3, 5), (32, 6), (1,)])
def test_packed_int4_is_what_onnx_reads(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(2).integers(-8, 8, shape).astype(np.int8)
    packed = pack_int4(values)
    assert (packed.dtype, packed.size) == (np.uint8, -(-values.size // 2))
    tensor = TensorProto(data_type=TensorProto.INT4, dims=shape, raw_data=packed.tobytes())
    assert (numpy_helper.to_array(tensor).astype(np.int8) == values).all()


def test_weight_file_holds_what_its_tensors_say(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    matrix = random.standard_normal((50, 70)).astype(np.float32)
    tensors = {
        "whole": (TensorProto.FLOAT, matrix, [matrix]),
        "pieces": (TensorProto.FLOAT16, matrix.astype(np.float16), np.array_split(matrix.astype(np.float16), 7)),
        "bf16": (TensorProto.BFLOAT16, matrix.astype(bfloat16), np.array_split(matrix.astype(bfloat16), 3)),
        "transposed": (TensorProto.FLOAT, matrix.T, [matrix.T]),  # not contiguous
        "bytes": (TensorProto.INT8, random.integers(-127, 127, (3, 5)).astype(np.int8), None),
        "last": (TensorProto.FLOAT, matrix[0], [matrix[0]]),
    }
    file = tmp_path / "target.data"
    with WeightFile(file) as out:
        protos = {name: out.add(name, kind, array.shape, pieces or [array]) for name, (kind, array, pieces) in tensors.items()}
    content = file.read_bytes()
    assert out.size == len(content)
    assert out.sha256 == hashlib.sha256(content).hexdigest()
    end = 0
    for name, (kind, array, _) in tensors.items():
        proto = protos[name]
        place = {entry.key: entry.value for entry in proto.external_data}
        offset, length = int(place["offset"]), int(place["length"])
        assert (proto.name, proto.data_type, tuple(proto.dims), place["location"]) == (name, kind, array.shape, "target.data")
        assert offset % ALIGNMENT == 0
        assert 0 <= offset - end < ALIGNMENT
        assert not any(content[end:offset])
        assert content[offset : offset + length] == np.ascontiguousarray(array).tobytes()
        end = offset + length
        load_external_data_for_tensor(proto, str(tmp_path))
        assert (onnx.numpy_helper.to_array(proto) == array).all()
    assert end == len(content)


def test_row_chunks_join_to_the_tensor_and_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for name, expected in weights_of(model).items():
        row = 4 * int(np.prod(expected.shape[1:]))
        for limit in (1, 7 * row, 1 << 20):
            monkeypatch.setattr(weights, "CHUNK_BYTES", limit)
            chunks = list(row_chunks(checkpoint, name))
            assert all(chunk.nbytes <= max(limit, row) for chunk in chunks)
            assert len(chunks) == -(-len(expected) // max(1, limit // row))
            assert (np.concatenate(chunks) == expected).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16, bfloat16, float8_e4m3fn])
def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path, kind: type, value: float) -> None:
    """Whatever layer they belong to: the check of a large model runs only some."""
    stored = np.array([[1, 2, 3], [4, 5, float(np.finfo(np.float32).max) if kind is np.float32 else 6]], kind)
    wrong = stored.copy()
    wrong[1, 1] = value
    number = helper.np_dtype_to_tensor_dtype(stored.dtype)
    for model, option in (("target", "--precision"), ("draft", "--draft-precision")):
        with WeightFile(tmp_path / f"{model}.data") as out:
            out.add("right", number, (2, 3), [stored])
            with pytest.raises(
                ParityError, match=f"{model}'s up has numbers that are not finite in {stored.dtype} — choose another {option}$"
            ):
                out.add("up", number, (4, 3), [stored, wrong])
