"""GGUF files that are no model, only a part of one, or not there at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.checkpoints.fetch import open_checkpoint
from export.errors import UnsupportedModel
from tests.support.checkpoints import expect_tensors, refused
from tests.support.tiny import tiny_model, weights_of, write_gguf


def test_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000\n")
    with refused(f"model.gguf is a Git LFS pointer, not the file itself — run git lfs pull in {tmp_path}"):
        open_checkpoint(tmp_path / "model.gguf")


def split(directory: Path, model: Any, **changes: Any) -> list[Path]:
    """A model in two files, as llama.cpp's gguf-split writes them; the first has the header."""
    import gguf

    weights = weights_of(model)
    first = {name: tensor for name, tensor in weights.items() if "layers.1" not in name}
    files = [directory / f"model-{number:05}-of-00002.gguf" for number in (1, 2)]
    write_gguf(files[0], model, weights=first, header={"split.count": 2, **changes})
    whole = directory / "whole.gguf"
    write_gguf(whole, model)
    writer = gguf.GGUFWriter(files[1], "llama")
    writer.add_uint16("split.count", 2)
    for tensor in gguf.GGUFReader(whole).tensors:
        if tensor.name.startswith("blk.1."):
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    whole.unlink()
    return files


def test_model_in_several_files(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=2)
    files = split(tmp_path, model)
    checkpoint = open_checkpoint(files[0])
    expect_tensors(checkpoint, weights_of(model))
    assert [name for name, *_ in checkpoint.fingerprint()] == [file.name for file in files]
    with refused("is one of 2 files — give the first"):
        open_checkpoint(files[1])
    files[1].rename(tmp_path / "kept")
    with refused(f"{files[1]} is missing: the model has 2 files — download all of them"):
        open_checkpoint(files[0])
    files[1].write_bytes(files[0].read_bytes())
    with refused("is in .*00001-of-00002.gguf and in .*00002-of-00002.gguf — "):
        open_checkpoint(files[0])


@pytest.mark.parametrize("kind", ["adapter", "mmproj"])
def test_file_that_is_no_model(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), header={"general.type": kind})
    with refused(f"is of the type '{kind}' \\(general.type\\), not a model — ", UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")


def test_other_byte_order(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.ones((4, 64), np.float32))
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    with refused("is big-endian, this machine is not — take a little-endian file", UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")
