"""docs/examples run unchanged, with a tiny engine in place of the demo model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from runtime import Decoder, SamplingParams

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def here(tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the engine at the path that the examples use."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "smollm2-135m").symlink_to(tiny_engine)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(here: Path, example: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, EXAMPLES / example, *arguments], cwd=here, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def answer(tiny_engine: Path) -> Iterator[Callable[[str, int], str]]:
    """The model's answer to a question, of at most this many tokens."""
    with Decoder(tiny_engine, threads=1) as decoder:
        yield lambda question, length: decoder.generate([{"role": "user", "content": question}], SamplingParams(max_new_tokens=length)).text


def test_embed(here: Path) -> None:
    out = said(here, "embed.py")
    assert out.count("tokens a cycle") == 2
    assert "Traceback" not in out
    assert len(out) > 60
    code = [line for line in (EXAMPLES / "embed.py").read_text().splitlines() if line and not line.startswith('"""')]
    assert len(code) <= 15


def test_asyncio(here: Path, answer: Callable[[str, int], str]) -> None:
    expected = [answer(question, 40) for question in ("What is snow?", "What is rain?")]
    assert said(here, "asyncio_answers.py") == "".join(f"- {text}\n" for text in expected)


def test_batch_of_files(here: Path, answer: Callable[[str, int], str]) -> None:
    questions = {"a": "What is ice?", "b": "What is wind?"}
    for name, question in questions.items():
        (here / f"{name}.txt").write_text(question)
    (here / "c.txt").write_text("far too long " * 2000)
    (here / "done.txt").write_text("What is fog?")
    (here / "done.answer").write_text("known")
    out = said(here, "batch_files.py", str(here))
    assert "c.txt: the prompt has" in out
    assert "done.txt" not in out
    for name, question in questions.items():
        assert (here / f"{name}.answer").read_text() == answer(question, 60)
    assert not list(here.glob("*.part"))


def test_fastapi_service(here: Path, answer: Callable[[str, int], str]) -> None:
    spec = spec_from_file_location("fastapi_service", EXAMPLES / "fastapi_service.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with TestClient(module.app) as client:
        assert client.post("/ask", json={"text": "What is fire?"}).json()["answer"] == answer("What is fire?", 60)
        refused = client.post("/ask", json={"text": "far too long " * 2000})
        assert (refused.status_code, "shorten it" in refused.json()["detail"]) == (400, True)
