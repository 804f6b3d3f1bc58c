"""Functions that a model may call, and what a request says about calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Function:
    """``parameters``: a JSON schema of an object; None takes no arguments. ``strict``: whether arguments must follow it whenever the model
    calls the function. ``field``: of the request that has its parameters."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    field: str = "tools"

    @property
    def described(self) -> dict[str, Any]:
        """As OpenAI's API and the templates describe it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters, "strict": self.strict or None}
        return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments."""
        if self.parameters is None:
            return {"type": "object", "additionalProperties": False}
        return {"type": "object", **self.parameters}


@dataclass(frozen=True)
class Tools:
    """``functions``: that the prompt describes. ``required``: whether the answer must be a call. ``named``: the function that it must call.
    ``parallel``: whether it may call several times."""

    functions: tuple[Function, ...]
    required: bool = False
    named: str | None = None
    parallel: bool = True

    @property
    def callable(self) -> tuple[Function, ...]:
        """Those that may be called."""
        return tuple(each for each in self.functions if self.named in (None, each.name))
