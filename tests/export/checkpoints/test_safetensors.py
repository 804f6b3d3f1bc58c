"""Reading Hugging Face directories with safetensors or pickles, and the errors for damaged ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.build import source_of
from export.checkpoints.fetch import open_checkpoint
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.parity.reference import reference_logits
from runtime.decoding.tree import Tree
from tests.support.checkpoints import LAYERS, TOKENS, as_pickles, expect_tensors, logits_of, refused
from tests.support.tiny import reference, tiny_model, weights_of


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model(num_hidden_layers=LAYERS, tied=False).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    return tmp_path / "model"


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_safetensors(tmp_path: Path, dtype: torch.dtype, shard: str) -> None:
    tiny_model(num_hidden_layers=LAYERS, tied=False).to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "100KB")
    checkpoint = open_checkpoint(tmp_path)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    model = tiny_model(num_hidden_layers=LAYERS, tied=False)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor.to(dtype).float())
    expect_tensors(checkpoint, weights_of(model))
    np.testing.assert_allclose(logits_of(checkpoint), reference(model, TOKENS)[0], rtol=0, atol=1e-4)
    names = {name for name, *_ in checkpoint.fingerprint()}
    assert names >= {"config.json", *(file.name for file in files)}


@pytest.mark.parametrize("name", ["llama-llama3", "llama-bias", "mistral", "qwen2", "qwen3"])
def test_numpy_reference_equals_transformers_on_a_tree(tmp_path: Path, name: str) -> None:
    """The reference that every export is compared with is itself compared with transformers, on a tree with branches."""
    model = tiny_model(name, num_hidden_layers=LAYERS)
    model.save_pretrained(tmp_path)
    tree = Tree.from_parents([5, 9, 7, 9, 4], [-1, 0, 0, 1, 2])
    checkpoint = open_checkpoint(tmp_path)
    logits = reference_logits(checkpoint, tree.tokens, tree.depth, tree.mask, range(checkpoint.arch.layers))
    for path in ([0, 1, 3], [0, 2, 4]):
        np.testing.assert_allclose(logits[path], reference(model, tree.tokens[path].tolist())[0], rtol=0, atol=1e-4)


def test_missing_shard(sharded: Path) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    with refused(rf"lacks {victim.name} \(1 of \d+ weight files\) — download"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("size", [0, 4, 300, -1])
def test_truncated_shard(sharded: Path, size: int) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    os.truncate(victim, size if size >= 0 else victim.stat().st_size + size)
    with refused(f"cannot read .*{victim.name}: .* — the file is truncated or damaged"):
        open_checkpoint(sharded)


def test_shard_that_became_unreadable_after_it_was_opened(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    for file in sharded.glob("*.safetensors"):
        file.unlink()
    with refused("cannot read .*safetensors: .* — the file is truncated or damaged"):
        checkpoint.read("model.norm.weight")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["", "{", '{"a": 1,}', "[1, 2]", "\x00\x01"])
def test_damaged_json(sharded: Path, name: str, text: str) -> None:
    (sharded / name).write_text(text)
    with refused(f"{name}.* — download it again"):
        open_checkpoint(sharded)


def test_json_that_is_not_utf8(sharded: Path) -> None:
    (sharded / "config.json").write_bytes(b'{"model_type": "\xff\xfe"}')
    with refused("cannot read .*config.json.* — download it again"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", ["null", "[]", '"x"', '{"a": 3}', "{}"])
def test_index_of_the_wrong_kind(sharded: Path, weight_map: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(f'{{"weight_map": {weight_map}}}')
    with refused("index.json.* — download"):
        open_checkpoint(sharded)


def test_missing_config(sharded: Path) -> None:
    (sharded / "config.json").unlink()
    with refused("config.json is missing — give a directory with a complete checkpoint"):
        open_checkpoint(sharded)


def test_directory_without_weights(tmp_path: Path) -> None:
    tiny_model(num_hidden_layers=1).config.save_pretrained(tmp_path)
    with refused("holds no weights .* — give a Hugging Face directory"):
        open_checkpoint(tmp_path)


def test_missing_tensor(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    for use in (checkpoint.shape, checkpoint.read):
        with refused(r"has no tensor 'model.layers.9.mlp.up_proj.weight' — the checkpoint is incomplete"):
            use("model.layers.9.mlp.up_proj.weight")


def test_a_changed_shard_changes_the_fingerprint(sharded: Path) -> None:
    before = open_checkpoint(sharded).fingerprint()
    assert open_checkpoint(sharded).fingerprint() == before
    file = sorted(sharded.glob("*.safetensors"))[0]
    stamp = file.stat().st_mtime_ns + 1_000_000_000
    os.utime(file, ns=(stamp, stamp))
    assert open_checkpoint(sharded).fingerprint() != before


@pytest.mark.parametrize("how", ["rewritten", "replaced", "in another directory"])
def test_other_weights_of_the_same_name_size_and_mtime_have_another_fingerprint(sharded: Path, how: str) -> None:
    checkpoint, found = open_checkpoint(sharded), sharded
    before, source = checkpoint.fingerprint(), source_of(checkpoint, None, {})
    if how == "in another directory":
        found = sharded.parent / "other" / sharded.name
        shutil.copytree(sharded, found)  # keeps the mtime
    file = sorted(found.glob("*.safetensors"))[0]
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    written = file.with_suffix(".new") if how == "replaced" else file
    written.write_bytes(content)
    os.utime(written, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    written.replace(file)
    after = open_checkpoint(found)
    assert [entry[:3] for entry in after.fingerprint()] == [entry[:3] for entry in before]
    assert source_of(after, None, {}) != source


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pickled_weights(tmp_path: Path, dtype: torch.dtype, parts: int) -> None:
    model = tiny_model("qwen2", num_hidden_layers=LAYERS)
    as_pickles(tmp_path, model, parts, dtype)
    checkpoint = open_checkpoint(tmp_path)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    expect_tensors(checkpoint, {name: torch.from_numpy(t).to(dtype).float().numpy() for name, t in weights_of(model).items()})
    assert {name for name, *_ in checkpoint.fingerprint()} >= {"config.json", *(file.name for file in tmp_path.glob("*.bin"))}
    with refused("has no tensor 'lm_head.weight' — "):
        checkpoint.read("lm_head.weight")


class Payload:
    """An object that creates a directory if it is unpickled without protection."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.directory),)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    as_pickles(tmp_path, tiny_model(num_hidden_layers=1), 1)
    torch.save({"model.norm.weight": torch.zeros(2), "payload": Payload(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with refused("cannot read .*pytorch_model.bin: it is damaged or holds more than tensors — "):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_damaged_pickles(tmp_path: Path) -> None:
    as_pickles(tmp_path, tiny_model(num_hidden_layers=1), 3)
    file = sorted(tmp_path.glob("*.bin"))[1]
    os.truncate(file, file.stat().st_size // 2)
    with refused(f"cannot read .*{file.name}: "):
        open_checkpoint(tmp_path)
    file.unlink()
    with refused(rf"lacks {file.name} \(1 of 3 weight files\)"):
        open_checkpoint(tmp_path)
    torch.save([1, 2], file)
    with refused(f"cannot read .*{file.name}: "):
        open_checkpoint(tmp_path)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=1)
    as_pickles(tmp_path, model, 1)
    model.save_pretrained(tmp_path)
    assert isinstance(open_checkpoint(tmp_path), HuggingFaceCheckpoint)
