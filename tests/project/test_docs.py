"""What the documents name exists: commands with their options, files, sections."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest

from export.cli import command as resps_export
from export.tuning.cli import command as resps_tune
from runtime.bench.cli import command as resps_bench
from runtime.cli import command as resps_run
from runtime.serve.cli import command as resps_serve

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "engines" / "README.md",
    *(ROOT / "export").rglob("README.md"),
]
SOURCES = [file for folder in ("docs", "export", "policy", "runtime", "scripts") for file in (ROOT / folder).rglob("*.py")]
COMMANDS = {
    "resps-bench": resps_bench,
    "resps-export": resps_export,
    "resps-run": resps_run,
    "resps-serve": resps_serve,
    "resps-tune": resps_tune,
}
CALL = re.compile(r"(resps-(?:bench|export|run|serve|tune)|python (?:-m )?(?:scripts|tests)[./][\w./]+)((?: +[^`|#\\\n]*|\\\n *)*)")
FILE = re.compile(r"\b(?:docs|engines|export|policy|runtime|scripts|tests)/[\w./-]+\.(?:py|md|tsv|jsonl|txt|j2)\b")
SECTION = re.compile(r'((?:lab/)?[a-z0-9]+)\.md, "([^"]+)"')


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def names(command: click.Command) -> set[str]:
    """Its options; a group's are those of all it holds."""
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return own.union({"--help", "-h"}, *(names(each) for each in getattr(command, "commands", {}).values()))


def options(call: str) -> set[str]:
    """Of a command of ours, or of a script's."""
    if call in COMMANDS:
        return names(COMMANDS[call])
    name = call.removeprefix("python ").removeprefix("-m ").removesuffix(".py").replace("/", ".")
    package = (ROOT / name.replace(".", "/")).is_dir()
    module = importlib.import_module(f"{name}.__main__" if package else name)
    return names(getattr(module, "command", None) or module.main)


def calls(document: Path) -> list[tuple[str, str]]:
    """(command, its arguments) wherever one is shown, continued lines joined."""
    return [(call, arguments) for call, arguments in CALL.findall(text(document)) if "--" in arguments]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: str(each.relative_to(ROOT)))
def test_commands_have_the_options_that_are_shown(document: Path) -> None:
    for call, arguments in calls(document):
        given = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", arguments))
        assert given <= options(call), (call, given - options(call))


def test_commands_are_found() -> None:
    assert len([call for document in DOCUMENTS for call in calls(document)]) > 50


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: str(each.relative_to(ROOT)))
def test_files_and_links_exist(document: Path) -> None:
    for name in FILE.findall(text(document)):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#\s]+)\)", text(document)):
        assert link.startswith("http") or (document.parent / link).exists(), link


def test_sections_that_are_referred_to_exist() -> None:
    found = [reference for file in (*DOCUMENTS, *SOURCES) for reference in SECTION.findall(text(file))]
    assert found
    for document, section in found:
        page = text(ROOT / "docs" / f"{document}.md")
        heading = re.search(rf"^#+ .*{re.escape(section)}|^\*{re.escape(section)}\.", page, re.MULTILINE)
        assert heading, (document, section)
