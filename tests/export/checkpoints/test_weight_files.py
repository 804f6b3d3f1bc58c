"""Which files of a directory hold the weights: those that transformers loads, never two that hold the same tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from export.checkpoints.fetch import open_checkpoint
from tests.support.checkpoints import as_pickles, expect_tensors, refused
from tests.support.hf_directory import WEIGHTS, HfDirectory
from tests.support.tiny import tiny_model, weights_of

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '4'}\nsize 12345\n"


@pytest.fixture
def llama(tmp_path: Path) -> HfDirectory:
    return HfDirectory(tmp_path / "model")


def halves(directory: HfDirectory) -> list[dict[str, np.ndarray]]:
    names = sorted(directory.tensors)
    return [{name: directory.tensors[name] for name in part} for part in (names[::2], names[1::2])]


def sharded(directory: HfDirectory, index: bool = True) -> list[str]:
    files = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for file, part in zip(files, halves(directory), strict=True):
        directory.write(part, file)
    if index:
        weight_map = {name: file for file, part in zip(files, halves(directory), strict=True) for name in part}
        (directory.path / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def expect_as_transformers(directory: HfDirectory) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory.path).float()
    expect_tensors(open_checkpoint(directory.path), weights_of(model))


def test_other_files_beside_the_weights_are_not_read(llama: HfDirectory) -> None:
    """A variant, Mistral's own format and the checkpoint of a trainer; the last name won before."""
    other = {name: 2 * tensor for name, tensor in llama.tensors.items()}
    for file in ("model.fp16.safetensors", "consolidated.safetensors", "zzz.safetensors", "a.safetensors"):
        llama.write(other, file)
    expect_as_transformers(llama)


def test_one_file_comes_before_an_index(llama: HfDirectory) -> None:
    sharded(llama)
    llama.write({name: 2 * tensor for name, tensor in llama.tensors.items()})
    expect_as_transformers(llama)


def test_index_comes_before_loose_files(llama: HfDirectory) -> None:
    sharded(llama)
    llama.write({name: 2 * tensor for name, tensor in llama.tensors.items()}, "consolidated.safetensors")
    llama.write({name: 2 * tensor for name, tensor in llama.tensors.items()}, "model-00003-of-00002.safetensors")
    (llama.path / WEIGHTS).unlink()
    expect_as_transformers(llama)


def test_pickle_comes_before_safetensors_of_another_name(llama: HfDirectory) -> None:
    other = tiny_model(num_hidden_layers=2, seed=1)
    as_pickles(llama.path, other, 1)
    (llama.path / WEIGHTS).rename(llama.path / "other.safetensors")
    expect_tensors(open_checkpoint(llama.path), weights_of(other))


def test_file_that_the_config_names(llama: HfDirectory) -> None:
    llama.write({name: 2 * tensor for name, tensor in llama.tensors.items()}, "mine.safetensors")
    llama.configure(transformers_weights="mine.safetensors")
    expect_as_transformers(llama)


def test_shards_without_an_index_are_joined(llama: HfDirectory) -> None:
    sharded(llama, index=False)
    (llama.path / WEIGHTS).unlink()
    expect_tensors(open_checkpoint(llama.path), llama.tensors)


def test_tensor_in_two_files_is_refused(llama: HfDirectory) -> None:
    files = sharded(llama, index=False)
    (llama.path / WEIGHTS).rename(llama.path / "model.fp32.safetensors")
    with refused(f"is in .*{files[0]} and in .*model.fp32.safetensors — move away the file that does not belong"):
        open_checkpoint(llama.path)


def test_tensor_in_two_pickles_is_refused(tmp_path: Path) -> None:
    as_pickles(tmp_path, tiny_model(num_hidden_layers=1), 2)
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    first = sorted(tmp_path.glob("*.bin"))[0]
    shutil.copy(first, tmp_path / "pytorch_model-00009-of-00002.bin")
    with refused(f"is in .*{first.name} and in .*pytorch_model-00009-of-00002.bin — move away"):
        open_checkpoint(tmp_path)


def test_index_that_lists_what_its_file_lacks(llama: HfDirectory) -> None:
    files = sharded(llama)
    (llama.path / WEIGHTS).unlink()
    llama.write(dict(list(halves(llama)[1].items())[1:]), files[1])
    lost = next(iter(halves(llama)[1]))
    with refused(f"{files[1]} lacks {lost}, which its index lists there — download the checkpoint again"):
        open_checkpoint(llama.path)


def test_index_without_a_tensor_that_its_files_hold(llama: HfDirectory) -> None:
    """transformers loads whole files; the index only names them."""
    sharded(llama)
    index = llama.path / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    (llama.path / WEIGHTS).unlink()
    expect_as_transformers(llama)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors"])
def test_index_that_leads_elsewhere(llama: HfDirectory, name: str) -> None:
    (llama.path / WEIGHTS).unlink()
    (llama.path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with refused("x.safetensors, which is outside of its directory — do not use it"):
        open_checkpoint(llama.path)


def test_shards_in_a_folder(llama: HfDirectory) -> None:
    (llama.path / "parts").mkdir()
    files = sharded(llama)
    for file in files:
        (llama.path / file).rename(llama.path / "parts" / file)
    index = llama.path / f"{WEIGHTS}.index.json"
    index.write_text(index.read_text().replace("model-0", "parts/model-0"))
    (llama.path / WEIGHTS).unlink()
    expect_as_transformers(llama)


def test_only_mistrals_own_format(llama: HfDirectory) -> None:
    (llama.path / WEIGHTS).rename(llama.path / "consolidated.safetensors")
    with refused("has only Mistral's own consolidated weights — get the model.*safetensors of the same repository"):
        open_checkpoint(llama.path)


def test_directory_of_a_gguf(llama: HfDirectory) -> None:
    (llama.path / WEIGHTS).rename(llama.path / "tiny.gguf")
    with refused(f"holds no weights .* — for the GGUF give --weights {llama.path}/tiny.gguf"):
        open_checkpoint(llama.path)


@pytest.mark.parametrize("file", ["config.json", WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin"])
def test_git_lfs_pointer_is_told_as_such(llama: HfDirectory, file: str) -> None:
    if file != "config.json":
        (llama.path / WEIGHTS).unlink()
    (llama.path / file).write_text(POINTER)
    with refused(f"{file} is a Git LFS pointer, not the file itself — run git lfs pull in {llama.path}, or download the file"):
        open_checkpoint(llama.path)
