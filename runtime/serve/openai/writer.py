"""What writes the answers of one request in the format of an endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...request import Chunk
from ..errors import ApiError
from .answer import OpenAnswer


class AnswerWriter(Protocol):
    """Of a request that is streamed, ``opening``, ``chunk``, ``end`` and ``closing`` write the events, else ``whole`` everything."""

    def whole(self, answers: Sequence[OpenAnswer], chunks: Sequence[Sequence[Chunk]], queued: float) -> dict[str, Any]:
        """All finished answers, of whose ``chunks`` nothing was sent, as one object. ``queued``: seconds in the queue."""

    def opening(self) -> Sequence[Mapping[str, Any]]:
        """Events before the first round."""

    def chunk(self, chunk: Chunk, answer: OpenAnswer, index: int) -> Sequence[Mapping[str, Any]]:
        """Events of one round. ``answer``: the same object for all events of this answer, ``index`` of all."""

    def end(self, answer: OpenAnswer, queued: float, index: int) -> Sequence[Mapping[str, Any]]:
        """The last events of a finished answer."""

    def closing(self, answers: Sequence[OpenAnswer]) -> Sequence[Mapping[str, Any]]:
        """Events after all of them."""

    def failure(self, error: ApiError) -> Mapping[str, Any]:
        """The event of a failure after the first byte."""

    def encoded(self, event: Mapping[str, Any] | None) -> bytes:
        """An event as it is sent; None stands for the end of a complete stream."""
