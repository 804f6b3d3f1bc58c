"""Failures as OpenAI's clients read them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import DecoderClosed, EngineFailure, PromptError, PromptKind, RespsError

LOG = logging.getLogger("runtime.serve")


class ServeError(RespsError):
    """The server cannot start: a port that is taken, packages that are missing."""


class ApiError(Exception):
    """One request's failure. ``param``: the field of the request that is to blame; ``outcome``: what /metrics counts it as."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        outcome: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.outcome = outcome or ("invalid" if status < 500 else "error")
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {"error": {"message": " ".join(str(self).split()), "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that is refused because of what it says."""
    return ApiError(400, message, code=code, param=param)


def too_late(seconds: float) -> ApiError:
    """``seconds``, all that a request may take, were over before anything came of it."""
    return ApiError(504, f"the time of a request, {seconds:g} s, was over before the first token", code="deadline", outcome="deadline")


def shutting_down() -> ApiError:
    """This server is going away."""
    return ApiError(
        503, "this server is shutting down — send the request again, to another one", code="shutting_down", outcome="shutting_down",
        retry_after=1,
    )  # fmt: skip


PROMPT_CODES: Mapping[PromptKind, str] = {"too_long": "context_length_exceeded"}
"""OpenAI's codes for what is wrong with a prompt, where it has one; else ``invalid_prompt``."""


def as_api_error(error: BaseException, param: str = "prompt") -> ApiError:
    """What the client is told of an exception that came out of a Decoder. Never more than one line, never a traceback. ``param``: the field
    that the prompt came from."""
    match error:
        case ApiError():
            return error
        case PromptError():
            return invalid(str(error), param, PROMPT_CODES.get(error.kind, "invalid_prompt"))
        case EngineFailure():
            return ApiError(500, str(error), code="engine_failure")
        case DecoderClosed():
            return ApiError(503, "the engine was closed — send the request again, to another server", code="engine_closed")
        case RespsError():
            return ApiError(500, str(error), code="failed")
        case _:
            name = type(error).__name__
            return ApiError(500, f"internal error, {name} — the server's log says more (resps-serve -vv)", code="internal_error")


def logged(error: BaseException, param: str = "prompt") -> ApiError:
    """The same, and what is the server's fault goes to its log."""
    known = as_api_error(error, param)
    if known.status >= 500 and known is not error:
        LOG.error("a request failed: %s", " ".join(str(error).split()), exc_info=error if known.code == "internal_error" else None)
    return known
