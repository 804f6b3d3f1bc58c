"""Items of /v1/responses' input, converted to the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import invalid
from .messages import template_arguments

_TEXT_PARTS = ("input_text", "output_text", "text")
_ROLES = ("system", "developer", "user", "assistant")


def messages_of(given: str | Sequence[Mapping[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The messages as chat templates take them. Calls that follow an assistant's message belong to its turn, as does the reasoning before
    it. Raises ApiError, which names the field."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    thought: str | None = None
    for at, item in enumerate(given):
        path, kind = f"input[{at}]", item.get("type") or "message"
        if kind == "reasoning":
            thought = _text(item.get("content") or "", f"{path}.content", ("reasoning_text",)) or None
            continue
        if kind == "function_call_output":
            output = _text(item.get("output"), f"{path}.output", _TEXT_PARTS)
            messages.append({"role": "tool", "tool_call_id": _given(item, "call_id", path), "content": output})
        elif kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(_call(item, path))
        elif kind == "message":
            messages.append(_message(item, path))
        else:
            known = "message, function_call, function_call_output or reasoning"
            raise invalid(f"{path}.type: {str(kind)[:80]!r} is not {known}", f"{path}.type")
        if thought is not None and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thought
        thought = None
    return messages


def _message(item: Mapping[str, Any], path: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise invalid(f"{path}.role: {str(role)[:80]!r} is not one of {', '.join(_ROLES)}", f"{path}.role")
    return {"role": "system" if role == "developer" else role, "content": _text(item.get("content"), f"{path}.content", _TEXT_PARTS)}


def _call(item: Mapping[str, Any], path: str) -> dict[str, Any]:
    written = item.get("arguments")
    arguments = template_arguments(written if written == "" else _given(item, "arguments", path))
    function = {"name": _given(item, "name", path), "arguments": arguments}
    return {"id": _given(item, "call_id", path), "type": "function", "function": function}


def _given(item: Mapping[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise invalid(f"{path}.{name}: the text is missing", f"{path}.{name}", "missing_required_parameter")
    return value


def _text(content: Any, path: str, kinds: Sequence[str]) -> str:
    """Text, or the joined text of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{path}: text or a list of text parts is missing", path, "missing_required_parameter")
    for at, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") not in kinds:
            raise invalid(f"{path}[{at}].type: only text is accepted, as a part of the type {' or '.join(kinds)}", f"{path}[{at}].type")
        if not isinstance(part.get("text"), str):
            raise invalid(f"{path}[{at}].text: the text is missing", f"{path}[{at}].text", "missing_required_parameter")
    return "".join(part["text"] for part in content)
