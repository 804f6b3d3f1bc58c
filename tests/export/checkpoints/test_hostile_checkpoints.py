"""Checkpoints from untrusted sources: headers with absurd sizes, paths that leave the directory, pickles."""

from __future__ import annotations

import ast
import json
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.checkpoints.gguf import GgufCheckpoint
from export.checkpoints.gguf_header import check_header
from export.checkpoints.weight_files import open_files
from export.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def little_memory() -> Any:
    """A limit of 512 MiB more than is used: code that allocates what a hostile header claims fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def gguf(
    fields: bytes = b"", tensors: bytes = b"", *, count: int = 0, field_count: int = 0, magic: bytes = b"GGUF", version: int = 3
) -> bytes:
    return magic + struct.pack("<IQQ", version, count, field_count) + fields + tensors


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


HUGE = 1 << 60
GGUFS = {
    "tensors": gguf(count=HUGE),
    "fields": gguf(field_count=HUGE),
    "key": gguf(text(b"k", HUGE), field_count=1),
    "string": gguf(text(b"k") + struct.pack("<I", 8) + text(b"v", HUGE), field_count=1),
    "array of bytes": gguf(text(b"k") + struct.pack("<IIQ", 9, 0, HUGE), field_count=1),
    "large array of bytes": gguf(text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 22), field_count=1),
    "array of strings": gguf(text(b"k") + struct.pack("<IIQ", 9, 8, HUGE) + text(b"v"), field_count=1),
    "arrays in arrays": gguf(text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, field_count=1),
    "type": gguf(text(b"k") + struct.pack("<I", 77), field_count=1),
    "dimensions": gguf(tensors=text(b"t") + struct.pack("<I", 0xFFFFFFFF), count=1),
    "shape": gguf(tensors=text(b"t") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0), count=1),
    "wrapping shape": gguf(tensors=text(b"t") + struct.pack("<IQQIQ", 2, 1 << 33, 1 << 31, 0, 0), count=1),
    "offset": gguf(tensors=text(b"t") + struct.pack("<IQIQ", 1, 1, 0, HUGE), count=1),
    "quantization": gguf(tensors=text(b"t") + struct.pack("<IQIQ", 1, 1, 9999, 0), count=1),
    "version": gguf(version=99),
    "magic": gguf(magic=b"GGML"),
    "nothing": b"",
    "half a number": b"GGUF\x03\x00",
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", GGUFS)
def test_gguf_headers_with_absurd_sizes(tmp_path: Path, name: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(GGUFS[name])
    with pytest.raises(CheckpointError, match=r"cannot read .* — the file is truncated or damaged, download it again") as caught:
        GgufCheckpoint(file)
    assert "\n" not in str(caught.value)


def test_valid_gguf_header_passes(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_float32("a.float", 1.5)
    writer.add_bool("a.bool", True)
    writer.add_tensor("t", np.zeros((4, 32), np.float32))
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    check_header(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [({"heads": 0}, (8, 64)), ({"head_dim": 0}, (8, 64)), ({"head_dim": "x"}, (8, 64)), ({}, (64,)), ({}, (2, 2, 16))],
    ids=str,
)
def test_gguf_with_impossible_sizes(tmp_path: Path, wrong: dict[str, Any], shape: tuple[int, ...]) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in {"embedding_length": 64, "feed_forward_length": 96, "block_count": 1, "context_length": 128}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", wrong.get("heads", 4))
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    if "head_dim" in wrong:
        (writer.add_string if wrong["head_dim"] else writer.add_uint32)("llama.attention.key_length", wrong["head_dim"])
    writer.add_tensor("token_embd.weight", np.zeros(shape, np.float32))
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    with pytest.raises(CheckpointError, match=r"model\.gguf.*(cannot be used|dimensions)"):
        GgufCheckpoint(tmp_path / "model.gguf")


def header(data: Any, length: int | None = None, rest: int = 0) -> bytes:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + bytes(rest)


SAFETENSORS = {
    "header": header(b"{}", HUGE),
    "large header": header(b"{}", 90 << 20),
    "shape": header({"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4]}}, rest=4),
    "wrapping shape": header({"w": {"dtype": "F32", "shape": [1 << 33, 1 << 33], "data_offsets": [0, 4]}}, rest=4),
    "offsets": header({"w": {"dtype": "F32", "shape": [HUGE // 4], "data_offsets": [0, HUGE]}}, rest=4),
    "offsets the wrong way": header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, rest=4),
    "type": header({"w": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, rest=4),
    "deep": header(b"[" * 100_000),
    "nothing": b"",
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_headers_with_absurd_sizes(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(CheckpointError, match=r"cannot read .* — the file is truncated or damaged, download it again") as caught:
        open_files(tmp_path)
    assert "\n" not in str(caught.value)


def test_index_cannot_name_files_outside_its_directory(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "outside.safetensors")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names \.\./outside\.safetensors, which is outside of its directory — "):
        open_files(tmp_path / "m")


def test_nothing_is_unpickled_without_protection() -> None:
    """Every torch.load has weights_only=True, no numpy.load allows pickles, and no module imports one that unpickles."""
    loads = 0
    for file in [path for top in ("policy", "runtime", "export", "scripts") for path in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & {"pickle", "shelve", "joblib", "dill", "marshal"}, file
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                assert [alias.name for alias in node.names] == ["UnpicklingError"], file
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            options = {keyword.arg: keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)}
            if (owner, node.func.attr) == ("torch", "load"):
                assert options.get("weights_only") is True, (file, node.lineno)
                loads += 1
            if (owner, node.func.attr) == ("np", "load"):
                assert not options.get("allow_pickle"), (file, node.lineno)
                loads += 1
    assert loads >= 3
