"""The messages in docs/troubleshooting.md exist in the code."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from runtime import RespsError

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LISTED = [
    message
    for row in GUIDE.splitlines()
    if row.startswith("| ") and not row.startswith(("| message", "| ---"))
    for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])
]


def descendants(cls: type) -> set[type]:
    return {cls, *(below for each in cls.__subclasses__() for below in descendants(each))}


def text(node: ast.AST) -> str:
    """The text of a string in the code, with … for each inserted value."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(text(value) if isinstance(value, ast.Constant) else "…" for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text(left) + text(right)
        case _:
            return "…"


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    files = [file for package in ("runtime", "export") for file in sorted((ROOT / package).rglob("*.py"))]
    return [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]


@cache
def messages() -> str:
    """The texts with a space in them, a line each."""
    return "\n".join(text(node) for _, node in nodes() if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and " " in text(node))


def raised() -> list[tuple[str, str]]:
    """Where errors of ours are raised, and with which message."""
    for errors in ("export.errors", "export.training.errors", "export.tuning.errors", "runtime.serve.errors"):
        importlib.import_module(errors)
    ours = {cls.__name__ for cls in descendants(RespsError)}
    return [
        (f"{file.relative_to(ROOT)}:{node.lineno}", text(node.args[0]))
        for file, node in nodes()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours and node.args
    ]


def pattern(listed: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part.strip()) for part in listed.split("…")))


@pytest.mark.parametrize("listed", LISTED)
def test_listed_message_exists(listed: str) -> None:
    assert pattern(listed).search(messages())


def test_every_message_is_listed() -> None:
    known = [pattern(listed) for listed in LISTED]
    found = raised()
    unlisted = [
        f"{where}: {message}" for where, message in found if message.strip("… ") and not any(each.search(message) for each in known)
    ]
    assert len(found) > 100
    assert unlisted == []
