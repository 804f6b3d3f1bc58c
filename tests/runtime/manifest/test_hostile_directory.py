"""Hostile engine directories: paths and links that lead outside, graphs that read other files, templates that misbehave."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from runtime import Decoder, EngineDirError, PromptError, SamplingParams
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.manifest.onnx_files import external_files
from runtime.manifest.typed_json import Malformed

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def directory(tiny_engine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, with a file named secret beside it."""
    shutil.copytree(tiny_engine, tmp_path / "engine")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "engine"


def edit(directory: Path, change: Edit) -> None:
    data = json.loads((directory / FILE_NAME).read_text())
    change(data)
    (directory / FILE_NAME).write_text(json.dumps(data))


def entry(file: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}


def expect_rejected(directory: Path, match: str) -> None:
    for verify in (True, False):
        with pytest.raises(EngineDirError, match=match) as caught:
            load_manifest(directory, verify=verify)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "{root}/secret", "./../secret", "..", ".", "", "sub/file", "a\0b", "/etc/passwd", "~/x"])
@pytest.mark.parametrize("role", ["graph", "tokenizer", "template", "more"])
def test_names_that_lead_outside_are_rejected(directory: Path, name: str, role: str) -> None:
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
    expect_rejected(directory, "outside the directory|lacks|without its hash")


@pytest.mark.parametrize("absolute", [True, False])
def test_links_that_lead_outside_are_rejected(directory: Path, absolute: bool) -> None:
    for name in ("tokenizer.json", "target.onnx", "target.data"):
        kept = (directory / name).read_bytes()
        (directory.parent / name).write_bytes(kept)
        (directory / name).unlink()
        (directory / name).symlink_to(directory.parent / name if absolute else Path("..") / name)
        expect_rejected(directory, f"{name} is a link to a place outside")
        (directory / name).unlink()
        (directory / name).write_bytes(kept)
    load_manifest(directory)


def test_a_link_to_an_engine_directory_is_accepted(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    with Decoder(tmp_path / "link", threads=1) as decoder:
        assert decoder.generate("the cat", SamplingParams(max_new_tokens=2)).tokens


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
def test_weights_that_the_manifest_does_not_list_are_rejected(
    directory: Path, place: Callable[[onnx.ModelProto, str], None], location: str
) -> None:
    location = location.replace("{root}", str(directory.parent))
    file = directory / "target.onnx"
    model = onnx.load(file, load_external_data=False)
    place(model, location)
    file.write_bytes(model.SerializeToString())
    edit(directory, lambda data: data["files"].update({"target.onnx": entry(file)}))
    assert location in external_files(file.read_bytes())
    expect_rejected(directory, "reads '.*', which manifest.json does not list")


def test_an_entry_with_its_value_before_its_key_is_found() -> None:
    """Serializers write the key first, but parsers accept any order. Of repeated fields the last one counts."""
    pair = b"\x12\x01x" + b"\x0a\x08location" + b"\x12\x06secret"
    model = _field(7, _field(5, _field(13, pair)))
    assert external_files(model) == {"secret"}
    assert onnx.ModelProto.FromString(model).graph.initializer[0].external_data[0].value == "secret"


@pytest.mark.parametrize("data", [b"\x3a\x7f", b"\xff" * 20, b"\x3a", b"\x0b"])
def test_invalid_protobuf_raises(data: bytes) -> None:
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
def test_a_failing_template_raises_a_prompt_error(directory: Path, template: str) -> None:
    (directory / "evil.jinja").write_text(template)
    change = {"evil.jinja": entry(directory / "evil.jinja")}
    edit(directory, lambda data: (data["tokens"].update(chat_template="evil.jinja"), data["files"].update(change)))
    with Decoder(directory, threads=1) as decoder:
        with pytest.raises(PromptError) as caught:
            decoder.encode([{"role": "user", "content": "the cat"}])
        assert "\n" not in str(caught.value)
