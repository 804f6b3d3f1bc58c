"""The commands, options, files and sections that the documents name exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.support.commands import COMMANDS, names

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "engines" / "README.md",
    *(ROOT / "export").rglob("README.md"),
]
SOURCES = [file for folder in ("docs", "export", "policy", "runtime", "scripts") for file in (ROOT / folder).rglob("*.py")]
CALL = re.compile(r"(resps-(?:bench|export|run|serve|train|tune)|python (?:-m )?(?:scripts|tests)[./][\w./]+)((?: +[^`|#\\\n]*|\\\n *)*)")
FILE = re.compile(r"\b(?:docs|engines|export|policy|runtime|scripts|tests)/[\w./-]+\.(?:py|md|tsv|jsonl|txt|j2)\b")
SECTION = re.compile(r'((?:lab/)?[a-z0-9]+)\.md, "([^"]+)"')


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def options(call: str) -> set[str]:
    """The options of one of our commands or scripts."""
    if call in COMMANDS:
        return names(COMMANDS[call])
    name = call.removeprefix("python ").removeprefix("-m ").removesuffix(".py").replace("/", ".")
    package = (ROOT / name.replace(".", "/")).is_dir()
    module = importlib.import_module(f"{name}.__main__" if package else name)
    return names(getattr(module, "command", None) or module.main)


def calls(document: Path) -> list[tuple[str, str]]:
    """(command, arguments) of every call in the document; continued lines are joined."""
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
