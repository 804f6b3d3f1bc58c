"""What all request bodies have in common: JSON is parsed and checked, and what is unknown is refused by name."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import invalid
from .neutral import NEUTRAL, is_neutral

CODES = {
    "missing": "missing_required_parameter",
    "too_short": "empty_array",
    "too_long": "array_above_max_length",
    "string_too_long": "string_above_max_length",
}


class Body(BaseModel):
    """An object of a request. ``kind``: of object, in neutral.py's tables."""

    kind: ClassVar[str] = "body"
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


_AnyBody = TypeVar("_AnyBody", bound=Body)


def parse_body(kind: type[_AnyBody], body: bytes) -> _AnyBody:
    """Parse and check a JSON body. Raises ApiError, which names the first invalid field."""
    try:
        parsed = kind.model_validate_json(body.removeprefix(BOM_UTF8))
    except ValidationError as error:
        failures = error.errors(include_url=False, include_input=False)
        # A value of a union type fails once per member. A failure inside a member says more than a mismatch of its type.
        first = next((each for each in failures if each["loc"] == () or not each["type"].endswith("_type")), failures[0])
        field = _field_path(first["loc"])
        message = f"{field or 'the body is not a valid JSON object'}: {first['msg']}"
        raise invalid(message, field, _error_code(first["type"], first.get("ctx", {}))) from None
    _expect_supported(parsed, "")
    return parsed


def _field_path(location: tuple[int | str, ...]) -> str | None:
    """Pydantic's location as OpenAI writes it, for example messages[0].role. Names of union members are left out."""
    named = (step for step in location if isinstance(step, int) or (step != "str" and step.isidentifier()))
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in named)
    return path.removeprefix(".")[:80] or None


def _error_code(kind: str, context: Mapping[str, Any]) -> str:
    """OpenAI's error code for pydantic's error type."""
    if kind.startswith(("greater_than", "less_than")):
        number = "decimal" if any(isinstance(each, float) for each in context.values()) else "integer"
        return f"{number}_{'below_min' if kind.startswith('greater') else 'above_max'}_value"
    return "invalid_type" if kind.endswith("_type") and kind != "model_type" else CODES.get(kind, "invalid_value")


def _expect_supported(body: Body, prefix: str) -> None:
    """Raises ApiError for an unknown or unsupported parameter in ``body`` or nested in it. ``prefix``: the path of ``body``."""
    for name, value in (body.model_extra or {}).items():
        if is_neutral(body.kind, name, value):
            continue
        path = f"{prefix}{name}"[:80]
        if name in NEUTRAL[body.kind]:
            raise invalid(f"{path} is not supported here and would change the answer — leave it out", path, "unsupported_parameter")
        raise invalid(f"unknown parameter {path} — leave it out", path, "unknown_parameter")
    for name in type(body).model_fields:
        value = getattr(body, name)
        for at, each in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(each, Body):
                _expect_supported(each, f"{prefix}{name}." if at is None else f"{prefix}{name}[{at}].")
