"""Fuzzes what reads files: the manifest, the Decoder behind it, GGUF, safetensors, ONNX graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from runtime import Decoder, SamplingParams
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from tests.stress.fuzz_values import changed, edited, edits, values

TOKENS = 3


def manifests(directory: Path) -> tuple[st.SearchStrategy[str], Callable[[str], object]]:
    """Almost valid manifests beside the valid files."""
    valid = (directory / FILE_NAME).read_text(encoding="utf-8")
    data = json.loads(valid)
    steps = st.lists(st.integers(0, 30), min_size=1, max_size=6)
    changes = st.lists(st.tuples(steps, st.integers(0, 5), values), min_size=1, max_size=3)

    def mutated(made: list[tuple[list[int], int, Any]]) -> str:
        result = data
        for step, action, value in made:
            result = changed(result, step, action, value)
        return json.dumps(result)

    raw = edits.map(lambda made: edited(valid.encode(), made).decode("utf-8", "replace"))

    def check(text: str) -> None:
        (directory / FILE_NAME).write_text(text, encoding="utf-8")
        load_manifest(directory, verify=False)

    return changes.map(mutated) | raw, check


def decoders(directory: Path) -> tuple[st.SearchStrategy[str], Callable[[str], object]]:
    """The same, and a Decoder generates if the manifest is accepted: sizes that do not fit the graphs must be refused by the engine."""
    cases, check = manifests(directory)

    def load(text: str) -> None:
        check(text)
        with Decoder(directory, threads=1, verify=False) as decoder:
            decoder.generate("the cat", SamplingParams(max_new_tokens=TOKENS))

    return cases, load


def a_gguf(directory: Path) -> bytes:
    """The header of a small model with every kind of value."""
    from gguf import GGUFWriter

    writer = GGUFWriter(directory / "valid.gguf", "llama")
    for key, value in {"embedding_length": 64, "feed_forward_length": 96, "block_count": 1, "attention.head_count": 4}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.context_length", 128)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    return (directory / "valid.gguf").read_bytes()


def a_safetensors(directory: Path) -> bytes:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros((2, 3), np.float32), "v": np.zeros(4, np.float16)}, directory / "valid.safetensors")
    data = (directory / "valid.safetensors").read_bytes()
    (directory / "valid.safetensors").unlink()
    return data


def files(
    name: str, valid: bytes, directory: Path, read: Callable[[Path], object]
) -> tuple[st.SearchStrategy[bytes], Callable[[bytes], object]]:
    def check(data: bytes) -> None:
        (directory / name).write_bytes(data)
        read(directory / name)

    return edits.map(lambda made: edited(valid, made)) | st.binary(max_size=64), check
