"""A form of calls: how it is read, and what it is written of."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .reader import Reader, Steps

NAME = "FUNCTION"
"""Stands for a function's name in ``head``."""


@dataclass(frozen=True)
class CallFormat:
    """How a family of models writes calls: ``opening``, calls with ``between`` between them, ``closing``. A call is ``head``, its
    arguments and ``tail``.

    ``trigger``: what every answer with calls has before the first name, None if there is no such mark. ``marks``: texts in it that may be
    special tokens. ``read``: reads an answer, given the names of the functions. ``id_size``: characters of a call's id, where the family's
    templates expect a number of letters and digits; None if ids may be anything.
    """

    name: str
    head: str
    tail: str
    read: Callable[[Reader, Collection[str]], Steps[None]]
    trigger: str | None
    marks: tuple[str, ...] = ()
    opening: str = ""
    between: str = "\n"
    closing: str = ""
    id_size: int | None = None

    def written(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """The text of calls, each a name and arguments."""
        texts = (self.head.replace(NAME, name) + json.dumps(arguments, ensure_ascii=False) + self.tail for name, arguments in calls)
        return self.opening + self.between.join(texts) + self.closing
