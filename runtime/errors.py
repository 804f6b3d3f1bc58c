"""Errors of the runtime. str(error) is one line: what happened — what to do.

RespsError                    base of everything raised on purpose
├── EngineDirError            engine directory missing, incomplete, changed or incompatible   (exit 3)
├── PromptError               a prompt that cannot be decoded; `kind` says why                (exit 2; also a ValueError)
├── ParameterError            a parameter that this engine cannot follow; `field` names it     (exit 2; also a ValueError)
├── GpuMemoryError            the GPU is too small; says how much is needed                   (exit 1)
├── BenchError                a benchmark that cannot be run, read or shown                   (exit 2)
├── DecoderBusy               every lane has an open Stream: finish or close one              (exit 1)
├── DecoderClosed             used after close()                                              (exit 1)
└── EngineFailure             a pass failed or its logits are not finite; `stage` says where  (exit 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

PromptKind = Literal["empty", "too_long", "not_text", "token_ids", "messages", "no_chat_template", "unreadable"]
"""Why a prompt cannot be decoded. messages: malformed, or rejected by the chat template. unreadable: a file of prompts."""


class RespsError(Exception):
    """Base of everything this project raises on purpose. Its text is one line, even if it quotes several."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class EngineDirError(RespsError):
    """The engine directory is missing, incomplete, changed or for another device."""

    exit_code = 3


class PromptError(RespsError, ValueError):
    """The prompt cannot be decoded. ``kind``: the reason, for programs."""

    exit_code = 2

    def __init__(self, message: str, kind: PromptKind = "unreadable") -> None:
        super().__init__(message)
        self.kind: PromptKind = kind


class ParameterError(RespsError, ValueError):
    """A parameter of a request that this engine cannot follow. ``field``: its name in SamplingParams."""

    exit_code = 2

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class GpuMemoryError(RespsError):
    """The engines do not fit into the GPU's free memory."""


class BenchError(RespsError):
    """A benchmark cannot be run, read or shown."""

    exit_code = 2


class DecoderBusy(RespsError):
    """Every lane of this Decoder has an open Stream, or a constraint waits for others to be compiled."""


class DecoderClosed(RespsError):
    """The Decoder was closed."""


class EngineFailure(RespsError):
    """A pass failed inside the inference engine, or its logits are not finite. ``stage``: prefill, draft, verify, sample or commit; None
    outside a request."""

    def __init__(self, message: str, stage: str | None = None) -> None:
        super().__init__(message)
        self.stage = stage

    def __str__(self) -> str:
        return f"{self.stage}: {super().__str__()}" if self.stage else super().__str__()


class Stage:
    """A context manager that sets ``stage`` of an EngineFailure raised inside it, unless a nested Stage did so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(value, EngineFailure):
            value.stage = value.stage or self._name


PREFILL, DRAFT, VERIFY, SAMPLE, COMMIT = map(Stage, ("prefill", "draft", "verify", "sample", "commit"))


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns a MemoryError inside the block into a RespsError that says what to do."""
    try:
        yield
    except MemoryError as error:
        why = f": {error}" if str(error) else ""
        raise RespsError(f"there is not enough memory for the engines{why} — free some, or export with a smaller --max-context") from None
