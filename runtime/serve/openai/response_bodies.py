"""The body of POST /v1/responses: checked, then converted to one GenerationRequest.

Nothing is stored: a conversation is sent as a whole each time. What asks for stored answers is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ...sampling_params import Constraint
from ..errors import ApiError, invalid
from .body import Body
from .constraint_fields import expect_known, made
from .requests import Count, GenerationRequest, SamplingBody, generation_request
from .response_items import messages_of
from .tool_fields import MAX_TOOLS, ResponseTool, checked_functions, chosen, template_values


class TextBody(Body):
    """``format``: the form of what is said."""

    kind: ClassVar[str] = "text"
    format: dict[str, Any] | None = None


class ResponseBody(SamplingBody):
    """The body. Fields of SamplingBody that OpenAI's API has not are our additions, as in the other bodies."""

    kind: ClassVar[str] = "response"
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class ResponseRequest:
    """A checked request. ``echoed``: fields of it that the response has, too."""

    generation: GenerationRequest
    echoed: Mapping[str, Any]


def response_request(body: ResponseBody, max_messages: int) -> ResponseRequest:
    """Convert the body of a request. Raises ApiError."""
    for name in ("previous_response_id", "conversation"):
        if getattr(body, name) is not None:
            raise invalid(f"{name}: this server stores no responses — send the whole conversation as input", name, "unsupported_parameter")
    if (body.n or 1) > 1:
        raise invalid("n: a response is one answer — send the request several times", "n", "unsupported_value")
    for field in ("rounds", "spec_decode_metrics", "timings_per_token"):
        if getattr(body, field):
            raise invalid(f"{field}: a response does not have it — ask for a chat completion", field, "unsupported_value")
    if None not in (body.max_tokens, body.max_output_tokens) and body.max_tokens != body.max_output_tokens:
        raise invalid("max_tokens and max_output_tokens mean the same — give one of them", "max_tokens")
    messages = messages_of(body.input, body.instructions)
    if not messages:
        raise invalid("input: there is no message", "input", "empty_array")
    if len(messages) > max_messages:
        raise invalid(f"input: {len(messages)} messages, at most {max_messages} are accepted — shorten the conversation", "input")
    functions = checked_functions([(f"tools[{at}]", each) for at, each in enumerate(body.tools or ())])
    tools = chosen(functions, body.tool_choice, _named(body.tool_choice), body.parallel_tool_calls, "name")
    generation = generation_request(body, messages, body.max_output_tokens or body.max_tokens, None)
    found = _text_format(body.text.format if body.text else None)
    if found is not None:
        field, form = found
        if generation.params.constraint is not None:
            raise invalid(f"{field}: {generation.constraint_field} is given too — a request has one form of the answer", field)
        if body.ignore_eos:
            raise invalid(f"ignore_eos: {field} says where the answer ends — leave one of them out", "ignore_eos")
        generation = replace(generation, params=replace(generation.params, constraint=form), constraint_field=field)
    values = template_values(body.chat_template_kwargs)
    return ResponseRequest(replace(generation, tools=tools, template_values=values, messages_field="input"), _echoed(body))


def _named(choice: str | Mapping[str, Any] | None) -> str | None:
    """The function that tool_choice names."""
    if not isinstance(choice, Mapping):
        return None
    if choice.get("type") != "function":
        raise invalid(f'tool_choice.type: {str(choice.get("type"))[:80]!r} is not "function"', "tool_choice.type")
    if not isinstance(choice.get("name"), str):
        raise invalid("tool_choice.name: the name is missing", "tool_choice.name", "missing_required_parameter")
    return str(choice["name"])


def _text_format(value: Mapping[str, Any] | None) -> tuple[str, Constraint] | None:
    path, kind = "text.format", (value or {}).get("type", "text")
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return path, Constraint.json_object()
    if kind != "json_schema":
        raise invalid(f'{path}.type: {str(kind)[:80]!r} is not "text", "json_object" or "json_schema"', f"{path}.type")
    expect_known(path, value, ("type", "name", "description", "schema", "strict"))
    if not isinstance(value.get("schema"), Mapping):
        raise _missing(f"{path}.schema", "the schema is missing, or is no object")
    return f"{path}.schema", made(f"{path}.schema", Constraint.json_schema, value["schema"])


def _missing(path: str, what: str) -> ApiError:
    return invalid(f"{path}: {what}", path, "missing_required_parameter")


def _echoed(body: ResponseBody) -> dict[str, Any]:
    text = body.text.format if body.text and body.text.format else {"type": "text"}
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": text},
        "tool_choice": body.tool_choice or "auto",
        "tools": [each.model_dump(exclude_none=True) for each in body.tools or ()],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "user": body.user,
    }
