"""Answers for clients of Triton that send a text: pieces of text, and a report at the end of each answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...request import Chunk
from ..openai.answer import OpenAnswer
from ..openai.requests import GenerationRequest


class TextWriter:
    """``text_output``, and ``report``: JSON with the stop reason and the statistics, in the last response of an answer. If ``generation``
    asks for several answers the report has the answer's index, and if it asks for rounds each report has those of its text. Without a
    stream an answer is one response."""

    def __init__(self, generation: GenerationRequest, streamed: bool) -> None:
        self._generation, self._streamed = generation, streamed
        self._text, self._rounds = "", list[Mapping[str, Any]]()  # what was not sent yet

    def chunk(self, chunk: Chunk, answer: OpenAnswer, index: int) -> Sequence[Mapping[str, Any]]:
        """The response of one round."""
        self._text += chunk.text
        self._rounds += [answer.rounds.written(chunk)] if self._generation.params.rounds else []
        return [self._taken({})] if self._streamed else []

    def end(self, answer: OpenAnswer, queued: float, index: int) -> Sequence[Mapping[str, Any]]:
        """The last response of an answer."""
        numbered = {"index": index} if self._generation.count > 1 else {}
        return [self._taken({"stop": answer.end.stop, "stats": answer.end.stats.as_dict(), **numbered})]

    def closing(self, answers: Sequence[OpenAnswer]) -> Sequence[Mapping[str, Any]]:
        """Nothing comes after the answers."""
        return []

    def _taken(self, report: dict[str, Any]) -> Mapping[str, str]:
        report |= {"rounds": self._rounds} if self._rounds else {}
        response = {"text_output": self._text, "report": json.dumps(report) if report else ""}
        self._text, self._rounds = "", []
        return response
