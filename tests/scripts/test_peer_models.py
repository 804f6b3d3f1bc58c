"""scripts/peers/models: GGUFs for other engines hold the demo model's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.peers.models.gguf_files import write_gguf


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_reads_back_as_the_weights(tmp_path: Path, kind: str) -> None:
    import gguf
    from gguf.quants import dequantize

    source, draws = tmp_path / "source.gguf", np.random.default_rng(0)
    matrix, vector = draws.normal(size=(8, 64)).astype(np.float32), draws.normal(size=64).astype(np.float32)
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    writer.add_rope_freq_base(1e5)
    stored = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.attn_q.weight", stored, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("output_norm.weight", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = dequantize(stored, gguf.GGMLQuantizationType.Q4_1)

    reader = gguf.GGUFReader(write_gguf(source, tmp_path / "out" / "copy.gguf", kind))
    fields = {name: reader.get_field(name).contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert fields["tokenizer.ggml.tokens"] == ["a", "b"]
    assert (fields["llama.block_count"], fields["llama.rope.freq_base"]) == (1, pytest.approx(1e5))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    copy, norm = tensors["blk.0.attn_q.weight"], tensors["output_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(norm.data, vector)
    assert copy.tensor_type == gguf.GGMLQuantizationType[kind]
    read = dequantize(copy.data, copy.tensor_type)
    if kind == "F32":
        assert np.array_equal(read, values)
    else:
        steps = np.abs(values.reshape(8, -1, 32)).max(axis=-1, keepdims=True) / 127
        assert (np.abs(read - values).reshape(8, -1, 32) <= 0.51 * steps + 1e-3 * steps * 127).all()
        assert not np.array_equal(read, values)


def test_gguf_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Q9"):
        write_gguf(tmp_path / "none.gguf", tmp_path / "out.gguf", "Q9")
