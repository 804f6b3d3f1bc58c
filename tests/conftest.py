"""Engine directories shared by the tests: a tiny random one, and the demo model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from export.cli import command
from runtime import Decoder
from runtime.console import run_command

# The references run in torch on one thread: with two, the second thread's half of a rotary table was once 1e-4 off, in one run of several,
# by a call that is exact otherwise.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-layer random llama with a vocabulary of 320, fully exported."""
    from tests.tiny import write_checkpoint

    root = tmp_path_factory.mktemp("tiny")
    write_checkpoint(root / "source")
    assert run_command(command, "resps-export", ["--weights", str(root / "source"), "--out", str(root), "--name", "tiny"]) == 0
    return root / "tiny"


@pytest.fixture
def decoder(tiny_engine: Path) -> Iterator[Decoder]:
    with Decoder(tiny_engine, threads=1) as decoder:
        yield decoder


@pytest.fixture(scope="session")
def demo_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """SmolLM2-135M in a precision, exported once per session (its weights come from the package index)."""
    root = tmp_path_factory.mktemp("engines")

    def engine(precision: str) -> Path:
        arguments = ["--model", "smollm2-135m", "--precision", precision, "--out", str(root), "--name", precision, "--max-context", "1024"]
        assert run_command(command, "resps-export", arguments) == 0
        return root / precision

    return engine
