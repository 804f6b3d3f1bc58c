"""docs/troubleshooting.md lists messages that the code really has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LISTED = [
    message
    for row in GUIDE.splitlines()
    if row.startswith("| ") and not row.startswith(("| message", "| ---"))
    for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])
]


def text(node: ast.AST) -> str:
    """Of a string in the code, with … for what is filled in."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(text(value) if isinstance(value, ast.Constant) else "…" for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text(left) + text(right)
        case _:
            return "…"


@pytest.fixture(scope="module")
def messages() -> list[str]:
    files = [file for package in ("runtime", "export") for file in (ROOT / package).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return [text(node) for node in nodes if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and " " in text(node)]


@pytest.mark.parametrize("listed", LISTED)
def test_listed_message_exists(listed: str, messages: list[str]) -> None:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in listed.split("…")))
    assert any(pattern.search(message) for message in messages)


def test_the_guide_lists_some() -> None:
    assert len(LISTED) > 60
