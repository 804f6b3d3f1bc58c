"""Fields of request bodies that say which functions the model may call, and how its template is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import StringConstraints

from ...sampling_params import Constraint
from ...tool_calls.functions import Function, Tools
from ..errors import invalid
from .body import Body

MAX_TOOLS = 128
"""The most functions of a request, as in OpenAI's API."""
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
_TEMPLATE_OWN = ("messages", "tools", "documents", "add_generation_prompt")


class FunctionBody(Body):
    """A function. ``parameters``: a JSON schema of an object."""

    kind: ClassVar[str] = "function"
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """A function that the model may call."""

    kind: ClassVar[str] = "tool"
    type: Literal["function"]
    function: FunctionBody


class ResponseTool(Body):
    """The same in /v1/responses."""

    kind: ClassVar[str] = "response_tool"
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def tools_of(tools: Sequence[ToolBody] | None, choice: str | Mapping[str, Any] | None, parallel: bool | None) -> Tools | None:
    """What may be called; None if nothing. Raises ApiError."""
    functions = checked_functions([(f"tools[{at}].function", each.function) for at, each in enumerate(tools or ())])
    return chosen(functions, choice, _named_by_chat(choice), parallel, "function.name")


def chosen(
    functions: Sequence[Function], choice: str | Mapping[str, Any] | None, named: str | None, parallel: bool | None, path: str
) -> Tools | None:
    """The tools of a request. ``named``: the function that ``choice`` names, at ``path`` in it. Raises ApiError."""
    names = [each.name for each in functions]
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise invalid(
            f'tool_choice: {choice[:80]!r} is not "none", "auto" or "required", nor an object that names a function', "tool_choice"
        )
    if choice == "required" and not functions:
        raise invalid("tool_choice: a call is required, but tools has no function", "tool_choice")
    if named is not None and named not in names:
        raise invalid(f"tool_choice.{path}: tools has no function {named[:80]!r}", f"tool_choice.{path}")
    if not functions or choice == "none":
        return None
    return Tools(tuple(functions), required=choice == "required", named=named, parallel=parallel is not False)


def checked_functions(functions: Sequence[tuple[str, FunctionBody | ResponseTool]]) -> list[Function]:
    """Functions with their paths in the body. Raises ApiError for two of a name, and for what is no schema of an object."""
    made: list[Function] = []
    for path, body in functions:
        if any(each.name == body.name for each in made):
            raise invalid(f"{path}.name: there are two functions {body.name!r}", f"{path}.name")
        made.append(_function(body, path))
    return made


def _function(body: FunctionBody | ResponseTool, path: str) -> Function:
    where = f"{path}.parameters"
    function = Function(body.name, body.description, body.parameters, bool(body.strict), where)
    if function.schema["type"] != "object":
        raise invalid(f"{where}.type: arguments are an object, not {str(function.schema['type'])[:80]!r}", f"{where}.type")
    try:
        Constraint.json_schema(function.schema)
    except (TypeError, ValueError) as error:
        raise invalid(str(error).replace("constraint:", f"{where}:", 1), where) from None
    return function


def _named_by_chat(choice: str | Mapping[str, Any] | None) -> str | None:
    """The function that tool_choice of /v1/chat/completions names."""
    if not isinstance(choice, Mapping):
        return None
    if choice.get("type") != "function":
        raise invalid(f'tool_choice.type: {str(choice.get("type"))[:80]!r} is not "function"', "tool_choice.type")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise invalid("tool_choice.function.name: the name is missing", "tool_choice.function.name", "missing_required_parameter")
    return name


def template_values(values: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Variables of the chat template. Raises ApiError for those that are not the client's."""
    for name in values or ():
        if name in _TEMPLATE_OWN:
            path = f"chat_template_kwargs.{name}"
            raise invalid(f"{path}: the server sets it — leave it out", path)
    return values or {}
