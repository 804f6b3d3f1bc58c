"""What an answer is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A piece of what is said."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks before it says something."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call of the function ``name`` begins. Its arguments follow."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of the arguments of the last call: JSON, as the model writes it. An answer that is cut may end inside."""

    text: str


Part = Text | Reasoning | Call | Arguments
