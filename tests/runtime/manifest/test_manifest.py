"""A damaged or incomplete engine directory is rejected with a one-line message that names the command to rebuild it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import EngineDirError
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import find_engine_dir, load_manifest


@pytest.fixture
def copy(tiny_engine: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    return tmp_path / "engine"


def rejection(directory: Path) -> str:
    """The message of the error that the directory raises."""
    with pytest.raises(EngineDirError) as caught:
        load_manifest(find_engine_dir(directory))
    message = str(caught.value)
    assert "\n" not in message
    assert "resps-export" in message
    return message


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((directory / FILE_NAME).read_text())
    change(data)
    (directory / FILE_NAME).write_text(json.dumps(data))


def test_round_trip(tiny_engine: Path) -> None:
    manifest = load_manifest(tiny_engine)
    assert manifest.to_json() == (tiny_engine / FILE_NAME).read_text()
    assert manifest.shape.vocab == 320
    assert manifest.graphs["target"].inputs["tokens"].shape == (1, "n")
    assert manifest.check.max_abs_logit_diff < 1e-4


def test_parent_of_a_single_engine_is_accepted(tiny_engine: Path, copy: Path) -> None:
    assert find_engine_dir(copy) == find_engine_dir(copy.parent) == copy
    shutil.copytree(tiny_engine, copy.parent / "second")
    with pytest.raises(EngineDirError, match="several"):
        find_engine_dir(copy.parent)


def test_missing_directory(tmp_path: Path) -> None:
    assert "no engine directory" in rejection(tmp_path / "nowhere")


def test_unfinished_directory(copy: Path) -> None:
    (copy / FILE_NAME).unlink()
    assert "not a finished engine" in rejection(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "[" * 100_000, '{"schema": 2}', '{"schema": "1"}', "\udc80"])
def test_damaged_manifest(copy: Path, content: str) -> None:
    (copy / FILE_NAME).write_bytes(content.encode("utf-8", "surrogateescape"))
    rejection(copy)


def test_the_message_names_another_schema(copy: Path) -> None:
    edit(copy, lambda data: data.update(schema=99))
    assert "schema 99" in rejection(copy)


@pytest.mark.parametrize("name", ["target.onnx", "target.data", "sample.onnx", "tokenizer.json"])
def test_changed_or_missing_file(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert name in rejection(copy)
    (copy / name).write_bytes(content[:-1])
    assert "changed" in rejection(copy)
    (copy / name).unlink()
    assert "lacks" in rejection(copy)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_files_outside_the_directory_are_rejected(copy: Path, name: str) -> None:
    edit(copy, lambda data: data["files"].update({name: {"sha256": "0" * 64, "bytes": 0}}))
    assert "outside" in rejection(copy)


def test_used_file_without_a_hash(copy: Path) -> None:
    edit(copy, lambda data: data["files"].pop("sample.onnx"))
    assert "without its hash" in rejection(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(surprise=1),
        lambda data: data.pop("limits"),
        lambda data: data["limits"].update(context="4096"),
        lambda data: data["limits"].update(context=-1),
        lambda data: data["limits"].update(context=True),
        lambda data: data["limits"].update(context=1.5),
        lambda data: data["tokens"].update(stop=2),
        lambda data: data["tokens"].update(stop=["2"]),
        lambda data: data["tokens"].update(chat_templates={"default": 3}),
        lambda data: data.update(graphs=[]),
        lambda data: data["graphs"]["target"]["inputs"]["tokens"].update(shape=[None]),
        lambda data: data["source"].update(files=[["a", 1]]),
        lambda data: data["check"].update(mean_kl="small"),
        lambda data: data["graphs"].pop("sample"),
        lambda data: data["graphs"]["target"]["outputs"].pop("features"),
        lambda data: data["limits"].update(span_step=0),
        lambda data: data["limits"].update(context=data["limits"]["capacity"]),
    ],
)
def test_malformed_entries(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(copy, change)
    assert "malformed" in rejection(copy)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_replaced_value_raises_nothing_but_engine_errors(
    tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    manifest = json.loads((tiny_engine / FILE_NAME).read_text())
    place: Any = manifest
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4))
    directory = tmp_path_factory.getbasetemp() / "fuzz"
    directory.mkdir(exist_ok=True)
    (directory / FILE_NAME).write_text(json.dumps(manifest))
    with pytest.raises(EngineDirError):  # if the manifest is valid, because its files are missing
        load_manifest(directory)
