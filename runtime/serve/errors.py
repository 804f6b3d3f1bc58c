"""Failed requests in OpenAI's format: an HTTP status and a body {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import DecoderBusy, DecoderClosed, EngineFailure, ParameterError, PromptError, PromptKind, RespsError

LOG = logging.getLogger("runtime.serve")


class ServeError(RespsError):
    """The server cannot start, for example because the port is taken or packages are missing."""


class CheckFailed(ServeError):
    """--check: the engine was loaded and gives no answer."""

    exit_code = 4


class ApiError(Exception):
    """The failure of one request.

    ``param``: the request's field that caused it. ``outcome``: the label under which /metrics counts the request. ``retry_after``: seconds
    that the client should wait, sent as the header Retry-After.
    """

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
    """The request is refused because of its content (400)."""
    return ApiError(400, message, code=code, param=param)


def deadline_exceeded(seconds: float) -> ApiError:
    """The request's time limit, ``seconds``, passed before the first token (504)."""
    return ApiError(504, f"the time of a request, {seconds:g} s, was over before the first token", code="deadline", outcome="deadline")


def deadline_unreachable(seconds: float, wait: float, decode: float, retry_after: int) -> ApiError:
    """The answer cannot come within ``seconds``: the request would wait about ``wait`` and decode for ``decode`` seconds (503)."""
    message = (
        f"no answer can come within {seconds:g} s now, after {wait:.1f} s of waiting and {decode:.1f} s of decoding — "
        "send the request again later, or give it more time"
    )
    return ApiError(503, message, code="deadline", outcome="deadline", retry_after=retry_after)


def queue_full(running: int, waiting: int, retry_after: int) -> ApiError:
    """The server has no place for the request, or had to give it to another one (429)."""
    message = f"the server is full, {running} requests run and {waiting} wait — send the request again later"
    return ApiError(429, message, code="queue_full", outcome="queue_full", retry_after=retry_after)


def queue_timeout(seconds: float, retry_after: int | None = None) -> ApiError:
    """The request waited ``seconds`` for a lane, the longest that it may (503)."""
    message = f"no engine became free within {seconds:g} s — send the request again later"
    return ApiError(503, message, code="queue_timeout", outcome="queue_timeout", retry_after=retry_after)


def shutting_down() -> ApiError:
    """The server is stopping (503)."""
    message = "this server is shutting down — send the request again, to another one"
    return ApiError(503, message, code="shutting_down", outcome="shutting_down", retry_after=1)


def replica_lost() -> ApiError:
    """The process that had the request ended before its answer (503)."""
    message = "the process that answered has ended — send the request again"
    return ApiError(503, message, code="replica_lost", retry_after=1)


PROMPT_CODES: Mapping[PromptKind, str] = {"too_long": "context_length_exceeded"}
"""OpenAI's error codes by kind of PromptError. All other kinds are ``invalid_prompt``."""


def as_api_error(error: BaseException, param: str = "prompt") -> ApiError:
    """Convert an exception of a Decoder into a one-line error without a traceback. ``param``: the request's field that held the prompt."""
    match error:
        case ApiError():
            return error
        case PromptError():
            return invalid(str(error), param, PROMPT_CODES.get(error.kind, "invalid_prompt"))
        case ParameterError():
            return invalid(str(error), error.field)
        case EngineFailure():
            return ApiError(500, str(error), code="engine_failure")
        case DecoderBusy():
            return ApiError(503, str(error), code="busy", retry_after=1)
        case DecoderClosed():
            return ApiError(503, "the engine was closed — send the request again, to another server", code="engine_closed")
        case RespsError():
            return ApiError(500, str(error), code="failed")
        case _:
            name = type(error).__name__
            return ApiError(500, f"internal error, {name} — the server's log says more (resps-serve -vv)", code="internal_error")


def logged(error: BaseException, param: str = "prompt") -> ApiError:
    """Like ``as_api_error``, and log failures of the server (status 500 and above)."""
    api_error = as_api_error(error, param)
    if api_error.status >= 500 and api_error is not error:
        traceback = error if api_error.code == "internal_error" else None
        LOG.error("a request failed: %s", " ".join(str(error).split()), exc_info=traceback)
    return api_error
