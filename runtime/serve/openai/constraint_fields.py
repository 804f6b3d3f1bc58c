"""Fields of request bodies that ask for a form of the answer, in the names of OpenAI, vLLM and llama.cpp: one Constraint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...sampling_params import Constraint
from ..errors import ApiError, invalid

Found = tuple[str, Constraint]
"""A field's path in the body, and what it asks for."""


def constraint_of(fields: Mapping[str, Any]) -> Found | None:
    """The constraint among ``fields`` (of FIELDS, without None); None if there is none. Raises ApiError."""
    found = [each for name, value in fields.items() if (each := FIELDS[name](name, value)) is not None]
    if len(found) > 1:
        raise invalid(f"{found[1][0]}: {found[0][0]} is given too — a request has one form of the answer", found[1][0])
    return found[0] if found else None


def _of(make: Callable[[Any], Constraint]) -> Callable[[str, Any], Found]:
    return lambda name, value: (name, made(name, make, value))


def made(field: str, make: Callable[[Any], Constraint], value: Any) -> Constraint:
    """What ``make`` makes of ``field``'s value. Raises ApiError."""
    try:
        return make(value)
    except (TypeError, ValueError) as error:
        raise invalid(str(error).replace("constraint:", f"{field}:", 1), field) from None


def _response_format(name: str, value: Mapping[str, Any]) -> Found | None:
    """OpenAI's."""
    kind = value.get("type")
    expect_known(name, value, ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "text":
        return None
    if kind == "json_object":
        return name, Constraint.json_object()
    if kind != "json_schema":
        raise invalid(f'{name}.type: {kind!r} is not "text", "json_object" or "json_schema"', f"{name}.type")
    within = f"{name}.json_schema"
    described = value.get("json_schema")
    if not isinstance(described, Mapping):
        raise invalid(f"{within}: an object with name and schema is missing", within, "missing_required_parameter")
    expect_known(within, described, ("name", "description", "schema", "strict"))
    schema = described.get("schema")
    if not isinstance(schema, Mapping):
        raise invalid(f"{within}.schema: the schema is missing, or is no object", f"{within}.schema", "missing_required_parameter")
    return f"{within}.schema", made(f"{within}.schema", Constraint.json_schema, schema)


def _structured_outputs(name: str, value: Mapping[str, Any]) -> Found | None:
    """vLLM's."""
    expect_known(name, value, tuple(_MAKERS))
    given = {f"{name}.{key}": (key, each) for key, each in value.items() if each is not None and each is not False}
    if len(given) != 1:
        raise invalid(f"{name}: give one of {', '.join(_MAKERS)}", name)
    ((path, (key, each)),) = given.items()
    return path, made(path, _MAKERS[key], each)


def expect_known(name: str, value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raises ApiError for another key in the object ``value``, which the body has as ``name``."""
    for key, each in value.items():
        if key not in known and each is not None:
            path = f"{name}.{key}"[:80]
            raise invalid(f"unknown parameter {path} — leave it out", path, "unknown_parameter")


def _any_object(value: Any) -> Constraint:
    if value is not True:
        raise TypeError("constraint: it must be true or false")
    return Constraint.json_object()


_MAKERS: Mapping[str, Callable[[Any], Constraint]] = {
    "json": Constraint.json_schema,
    "regex": Constraint.regex,
    "choice": Constraint.choice,
    "grammar": Constraint.grammar,
    "json_object": _any_object,
}
FIELDS: Mapping[str, Callable[[str, Any], Found | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _of(Constraint.json_schema),
    "guided_regex": _of(Constraint.regex),
    "guided_choice": _of(Constraint.choice),
    "guided_grammar": _of(Constraint.grammar),
    "grammar": _of(Constraint.grammar),
    "json_schema": _of(Constraint.json_schema),
}
"""By field: reads its value. Raises ApiError."""


def renamed(error: ApiError, field: str | None) -> ApiError:
    """``error``, with the body's ``field`` in the place of the parameter ``constraint``."""
    if error.param != "constraint" or field is None:
        return error
    return invalid(str(error).replace("constraint:", f"{field}:", 1), field)
