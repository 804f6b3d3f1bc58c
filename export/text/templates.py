"""Finds the chat templates of a directory, and compiles and renders every template before it goes into an engine directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.text.template import ChatTemplate, TemplateFault

from ..checkpoints.safetensors import read_json
from ..errors import CheckpointError
from .side import TEMPLATE_FILE

TEMPLATE_FOLDER = "additional_chat_templates"
_LEGACY_FILE = "chat_template.json"  # of processors; read if there is no other template

_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number", "description": "One."}}, "required": ["a"]},
    },
}
_USER = {"role": "user", "content": "Say something."}
_TRIALS: tuple[dict[str, Any], ...] = (
    {"messages": [_USER]},
    {"messages": [{"role": "system", "content": "Be brief."}, _USER]},
    {"messages": [_USER, {"role": "assistant", "content": "Something."}, _USER]},
    {"messages": [_USER], "tools": [_TOOL]},
    {"messages": [_USER], "documents": [{"title": "One", "text": "A text."}]},
)


def directory_templates(directory: Path, configured: Any) -> dict[str, str]:
    """All templates by name; a single one is named "default". Files stand for the entry of tokenizer_config.json (``configured``). Raises
    CheckpointError."""
    files = {"default": directory / TEMPLATE_FILE} if (directory / TEMPLATE_FILE).is_file() else {}
    files |= {file.name.removesuffix(".jinja"): file for file in sorted((directory / TEMPLATE_FOLDER).glob("*.jinja"))}
    if files:
        return {name: _read(file) for name, file in files.items()}
    if configured is None and (directory / _LEGACY_FILE).is_file():
        return _named(directory / _LEGACY_FILE, read_json(directory / _LEGACY_FILE).get("chat_template"))
    return _named(directory / "tokenizer_config.json", configured)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {file}: {error} — download it again") from None


def _named(file: Path, configured: Any) -> dict[str, str]:
    """One template, a list of named ones, or an object of named ones."""
    if configured is None or configured == "":
        return {}
    if isinstance(configured, str):
        return {"default": configured}
    entries: list[tuple[Any, Any]] | None = list(configured.items()) if isinstance(configured, dict) else None
    if isinstance(configured, list) and all(isinstance(entry, dict) for entry in configured):
        entries = [(entry.get("name"), entry.get("template")) for entry in configured]
    if entries is None or not all(isinstance(name, str) and isinstance(template, str) for name, template in entries):
        raise CheckpointError(f"{file} has a chat template that is not text — download it again")
    return dict(entries)


def tried(templates: Mapping[str, str], special: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The templates that compile and render at least one chat, and the reasons of the others.

    One trial is enough: a template may refuse a system turn, or chats without tools.
    """
    usable, unusable = {}, {}
    for name, source in templates.items():
        reason = _fault(source, special)
        if reason is None:
            usable[name] = source
        else:
            unusable[name] = reason[:300]
    return usable, unusable


def _fault(source: str, special: Mapping[str, str]) -> str | None:
    """Why a template renders no chat, None if it renders one."""
    try:
        source.encode()
        template = ChatTemplate(source)
    except UnicodeEncodeError:
        return "it contains lone surrogates, which are not text"
    except TemplateFault as error:
        return f"it cannot be compiled ({error})"
    reasons = []
    for trial in _TRIALS:
        try:
            template.render(special=special, **trial)
        except TemplateFault as error:
            reasons.append(f"it refuses every trial chat ({error})")
        else:
            return None
    return reasons[0]
