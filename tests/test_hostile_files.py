"""Files from strangers: paths that lead out of an engine directory, headers with absurd sizes, pickles."""

from __future__ import annotations

import ast
import hashlib
import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from export.checkpoint import SafetensorsFiles
from export.errors import CheckpointError
from export.gguf import GgufCheckpoint
from export.gguf_header import check_header
from runtime import Decoder, EngineDirError, PromptError
from runtime.manifest import FILE_NAME, load_manifest
from runtime.onnx_files import external_files
from runtime.typed_json import Malformed

ROOT = Path(__file__).resolve().parent.parent
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def directory(tiny_engine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, with something beside it."""
    shutil.copytree(tiny_engine, tmp_path / "engine")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "engine"


def edit(directory: Path, change: Edit) -> None:
    data = json.loads((directory / FILE_NAME).read_text())
    change(data)
    (directory / FILE_NAME).write_text(json.dumps(data))


def entry(file: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}


def refused(directory: Path, match: str) -> None:
    for verify in (True, False):
        with pytest.raises(EngineDirError, match=match) as caught:
            load_manifest(directory, verify=verify)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "{root}/secret", "./../secret", "..", ".", "", "sub/file", "a\0b", "/etc/passwd", "~/x"])
@pytest.mark.parametrize("role", ["graph", "tokenizer", "template", "more"])
def test_names_that_lead_out_of_the_directory(directory: Path, name: str, role: str) -> None:
    name = name.replace("{root}", str(directory.parent))

    def change(data: dict[str, Any]) -> None:
        if role == "graph":
            data["graphs"]["target"]["file"] = name
        elif role == "tokenizer":
            data["tokens"]["tokenizer"] = name
        elif role == "template":
            data["tokens"]["chat_template"] = name
        data["files"][name] = entry(directory.parent / "secret")

    edit(directory, change)
    refused(directory, "outside the directory|lacks|without its hash")


@pytest.mark.parametrize("absolute", [True, False])
def test_links_that_lead_out_of_the_directory(directory: Path, absolute: bool) -> None:
    for name in ("tokenizer.json", "target.onnx", "target.data"):
        kept = (directory / name).read_bytes()
        (directory.parent / name).write_bytes(kept)
        (directory / name).unlink()
        (directory / name).symlink_to(directory.parent / name if absolute else Path("..") / name)
        refused(directory, f"{name} is a link to a place outside")
        (directory / name).unlink()
        (directory / name).write_bytes(kept)
    load_manifest(directory)


def test_a_linked_engine_directory_is_fine(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    with Decoder(tmp_path / "link", threads=1) as decoder:
        assert decoder.generate("the cat", max_new_tokens=2).tokens


def in_initializer(model: onnx.ModelProto, location: str) -> None:
    tensor = next(each for each in model.graph.initializer if each.external_data)
    next(each for each in tensor.external_data if each.key == "location").value = location


def in_a_constant(model: onnx.ModelProto, location: str) -> None:
    tensor = onnx.TensorProto(name="x", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(value=location, key="location")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def in_a_branch(model: onnx.ModelProto, location: str) -> None:
    inner = onnx.helper.make_graph([], "inner", [], [])
    inner.initializer.add(name="x", data_type=1, dims=[1]).external_data.add(key="location", value=location)
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def in_a_function(model: onnx.ModelProto, location: str) -> None:
    tensor = onnx.TensorProto(name="x", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(onnx.helper.make_function("d", "f", [], ["y"], [node], [onnx.helper.make_opsetid("", 21)]))


def in_a_sparse_tensor(model: onnx.ModelProto, location: str) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.external_data.add(key="location", value=location)


@pytest.mark.parametrize("place", [in_initializer, in_a_constant, in_a_branch, in_a_function, in_a_sparse_tensor])
@pytest.mark.parametrize("location", ["../secret", "{root}/secret", "unlisted.data", "../engine/target.data", "x" * 300])
def test_weights_of_a_graph_are_files_of_the_manifest(
    directory: Path, place: Callable[[onnx.ModelProto, str], None], location: str
) -> None:
    location = location.replace("{root}", str(directory.parent))
    file = directory / "target.onnx"
    model = onnx.load(file, load_external_data=False)
    place(model, location)
    file.write_bytes(model.SerializeToString())
    edit(directory, lambda data: data["files"].update({"target.onnx": entry(file)}))
    assert location in external_files(file.read_bytes())
    refused(directory, "reads '.*', which manifest.json does not list")


def test_an_entry_in_another_order_is_seen() -> None:
    """Serializers write the key first, parsers take any order; of two the last one counts."""
    pair = b"\x12\x01x" + b"\x0a\x08location" + b"\x12\x06secret"
    model = _field(7, _field(5, _field(13, pair)))
    assert external_files(model) == {"secret"}
    assert onnx.ModelProto.FromString(model).graph.initializer[0].external_data[0].value == "secret"


@pytest.mark.parametrize("data", [b"\x3a\x7f", b"\xff" * 20, b"\x3a", b"\x0b"])
def test_what_is_no_graph(data: bytes) -> None:
    with pytest.raises(Malformed):
        external_files(data)


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ missing.part.part }}",
        "{{ raise_exception('no\\nline') }}",
    ],
)
def test_a_template_that_misbehaves_is_a_prompt_error(directory: Path, template: str) -> None:
    (directory / "evil.jinja").write_text(template)
    change = {"evil.jinja": entry(directory / "evil.jinja")}
    edit(directory, lambda data: (data["tokens"].update(chat_template="evil.jinja"), data["files"].update(change)))
    with Decoder(directory, threads=1) as decoder:
        with pytest.raises(PromptError) as caught:
            decoder.encode([{"role": "user", "content": "the cat"}])
        assert "\n" not in str(caught.value)


# --- checkpoints ---


@pytest.fixture
def little_memory() -> Any:
    """What allocates as a header says runs out of it."""
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
    "array of some": gguf(text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 22), field_count=1),
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


def test_a_real_gguf_header_passes(tmp_path: Path) -> None:
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
def test_a_gguf_of_impossible_numbers(tmp_path: Path, wrong: dict[str, Any], shape: tuple[int, ...]) -> None:
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
        SafetensorsFiles(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_cannot_lead_out_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "outside.safetensors")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks outside\.safetensors"):
        SafetensorsFiles(tmp_path / "m")


# --- pickles ---


def test_nothing_is_ever_unpickled_without_protection() -> None:
    """Who loads with torch says weights_only=True, who loads with numpy allows no pickles, and nobody imports a module that unpickles."""
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
            options = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
            if (owner, node.func.attr) == ("torch", "load"):
                assert options.get("weights_only") is True, (file, node.lineno)
                loads += 1
            if (owner, node.func.attr) == ("np", "load"):
                assert not options.get("allow_pickle"), (file, node.lineno)
                loads += 1
    assert loads >= 3
