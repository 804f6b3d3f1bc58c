"""Messages of a conversation: checked, then converted to what chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from ..errors import invalid
from .body import Body


class TextPart(Body):
    """A part of a message's content."""

    kind: ClassVar[str] = "part"
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """``arguments``: JSON, as the model wrote it."""

    kind: ClassVar[str] = "called_function"
    name: str
    arguments: str


class CallBody(Body):
    """A call in an assistant's message."""

    kind: ClassVar[str] = "call"
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


def _expected(content: Any, info: ValidationInfo) -> Any:
    """An assistant may have said nothing; others have content."""
    if content is None and info.data.get("role") == "assistant":
        return None if info.data.get("tool_calls") else ""
    if content is None:
        raise PydanticCustomError("missing", "Field required")
    return content


class ChatMessage(Body):
    """One message. The role developer is the same as system. Content may be null in an assistant's message."""

    kind: ClassVar[str] = "message"
    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[CallBody] | None = None
    content: Annotated[str | list[TextPart] | None, BeforeValidator(_expected), Field(validate_default=True)] = None
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as templates take them; arguments of calls are objects. Raises ApiError, which names the field."""
    return [_template_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _template_message(message: ChatMessage, path: str) -> dict[str, Any]:
    if message.role == "tool" and not message.tool_call_id:
        field = f"{path}.tool_call_id"
        raise invalid(f"{field}: the id of the call that this is the result of is missing", field, "missing_required_parameter")
    for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if getattr(message, name) and message.role != role:
            raise invalid(f"{path}.{name}: only messages of the role {role} have it", f"{path}.{name}")
    content = message.content
    made: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": "".join(part.text for part in content) if isinstance(content, list) else content,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content or message.reasoning or None,
    }
    if message.tool_calls:
        made["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return {key: value for key, value in made.items() if value is not None or key == "content"}


def _template_call(call: CallBody) -> dict[str, Any]:
    arguments = template_arguments(call.function.arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def template_arguments(text: str) -> Mapping[str, Any]:
    """A call's arguments as templates take them. A model may have written no object, or an answer was cut: then they are text in one."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, Mapping) else {"arguments": text}
