"""Engines with tiny EAGLE-3 drafts, and what each target answers without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from runtime import Decoder, SamplingParams
from tests.support.eagle_engines import export, write_echo, write_random_draft
from tests.support.tiny import write_checkpoint

PROMPT_ROWS = {"random": 32, "echo": 4, "echo-int8": 32}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Engine directories with a random draft, and with one that is often right ("echo"). One prefills in chunks shorter than a path can
    be."""
    root = tmp_path_factory.mktemp("eagle")
    write_checkpoint(root / "random-target")
    write_random_draft(root / "random-draft")
    write_echo(root / "echo-target", root / "echo-draft")
    made = {}
    for name, rows in PROMPT_ROWS.items():
        target, draft = (root / f"{name.split('-')[0]}-{part}" for part in ("target", "draft"))
        precision = "int8" if name.endswith("int8") else "fp32"
        made[name] = export(target, draft, root / name, "--prefill-rows", str(rows), "--draft-precision", precision)
    return made


@pytest.fixture(scope="module")
def decoders(engines: Mapping[str, Path]) -> Iterator[Mapping[str, Decoder]]:
    loaded = {name: Decoder(directory, threads=1) for name, directory in engines.items()}
    yield loaded
    for decoder in loaded.values():
        decoder.close()


@pytest.fixture(scope="module")
def plain(engines: Mapping[str, Path]) -> Iterator[Callable[..., tuple[int, ...]]]:
    """The answer of plain decoding, from a decoder that never drafts."""
    loaded = {name: Decoder(directory, draft="none", threads=1) for name, directory in engines.items()}

    def answer(name: str, prompt: Sequence[int], count: int, sampling: SamplingParams = SamplingParams()) -> tuple[int, ...]:
        return loaded[name].generate(prompt, replace(sampling, max_new_tokens=count)).tokens

    yield answer
    for decoder in loaded.values():
        decoder.close()
