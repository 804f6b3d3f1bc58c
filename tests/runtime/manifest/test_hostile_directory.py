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
            data["tokens"]["chat_templates"] = {"default": name}
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


def external(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="outside", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_initializer(model: onnx.ModelProto, location: str) -> None:
    model.graph.initializer.append(external(location))


def in_a_constant(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["outside"], value=external(location)))


def in_a_branch(model: onnx.ModelProto, location: str) -> None:
    node = onnx.helper.make_node("Constant", [], ["inner"], value=external(location))
    inner = onnx.helper.make_graph([node], "inner", [], [onnx.helper.make_tensor_value_info("inner", 1, [1])])
    model.graph.initializer.append(onnx.helper.make_tensor("condition", 9, [], [1]))
    model.graph.node.append(onnx.helper.make_node("If", ["condition"], ["outside"], then_branch=inner, else_branch=inner))


def in_a_function(model: onnx.ModelProto, location: str) -> None:
    node = onnx.helper.make_node("Constant", [], ["inner"], value=external(location))
    opset = onnx.helper.make_opsetid("", 24)
    model.functions.append(onnx.helper.make_function("d", "f", [], ["inner"], [node], [opset]))
    model.opset_import.append(onnx.helper.make_opsetid("d", 1))
    model.graph.node.append(onnx.helper.make_node("f", [], ["outside"], domain="d"))


@pytest.mark.parametrize("place", [in_initializer, in_a_constant, in_a_branch, in_a_function])
@pytest.mark.parametrize("location", ["../secret", "{root}/secret", "link", "../engine/../secret"])
def test_graphs_that_read_files_outside_are_rejected(directory: Path, place: Callable[[onnx.ModelProto, str], None], location: str) -> None:
    """ONNX Runtime rejects them, from the oldest supported version on. The secret has the size that the graph expects."""
    (directory.parent / "secret").write_bytes(b"1234")
    (directory / "link").symlink_to(directory.parent / "secret")
    file = directory / "target.onnx"
    model = onnx.load(file, load_external_data=False)
    place(model, location.replace("{root}", str(directory.parent)))
    model.graph.output.append(onnx.helper.make_tensor_value_info("outside", 1, [1]))
    file.write_bytes(model.SerializeToString())
    edit(directory, lambda data: data["graphs"]["target"].update(fused=None))
    edit(directory, lambda data: data["files"].update({"target.onnx": entry(file)}))
    with pytest.raises(EngineDirError, match=r"ONNX Runtime cannot load .*target\.onnx") as caught:
        Decoder(directory, threads=1)
    assert "\n" not in str(caught.value)


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
    edit(directory, lambda data: (data["tokens"].update(chat_templates={"default": "evil.jinja"}), data["files"].update(change)))
    with Decoder(directory, threads=1) as decoder:
        with pytest.raises(PromptError) as caught:
            decoder.encode([{"role": "user", "content": "the cat"}])
        assert "\n" not in str(caught.value)
        decoder.warmup()  # what refuses the warm-up's chat may take others
