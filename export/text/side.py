"""TextSide: what was found about text in a checkpoint, and the files that an engine directory gets of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.manifest.schema import Tokens

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class TextSide:
    """The text side of a model. ``tokenizer_json``: the tokenizer in the form of the tokenizers package. ``stop``: ids of the tokens that
    end an answer, each with the places that name it. ``special``: texts of special tokens as chat templates know them. ``templates``: chat
    templates by name. ``unusable``: templates that cannot be compiled or rendered, with the reason. ``warnings``: what the user should
    know, a line each. ``vocab``: the number of tokens that the model can generate, None if the checkpoint does not
    say. The other fields are those of `runtime.manifest.schema.Tokens`."""

    tokenizer_json: str
    stop: Mapping[int, tuple[str, ...]]
    bos: int | None
    special: Mapping[str, str]
    templates: Mapping[str, str]
    unusable: Mapping[str, str] = field(default_factory=dict)
    chat_bos: bool = False
    split_special: bool = False
    names: Mapping[int, str] = field(default_factory=dict)  # of stop tokens and bos, for people
    vocab: int | None = None
    warnings: tuple[str, ...] = ()

    def write(self, directory: Path) -> Tokens:
        """Write tokenizer and templates. Returns their description for the manifest."""
        (directory / TOKENIZER_FILE).write_text(self.tokenizer_json, encoding="utf-8")
        files = {name: _file_name(index, name) for index, name in enumerate(self.templates)}
        for name, file in files.items():
            (directory / file).write_text(self.templates[name], encoding="utf-8", newline="")
        return Tokens(TOKENIZER_FILE, files, tuple(self.stop), self.bos, self.special, self.unusable, self.chat_bos, self.split_special)

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """What the user should know, a line each."""
        found = [*self.warnings]
        found += [f"the chat template {name} cannot be used: {why}; its chats are refused" for name, why in self.unusable.items()]
        if self.templates and "default" not in {*self.templates, *self.unusable}:
            found.append(f"there are chat templates named {', '.join(self.templates)} and no default: chats are refused")
        outside = [token for token in self.stop if self.vocab is not None and token >= self.vocab]
        found += [f"stop token {self._token(token)} is outside of the model's {self.vocab} tokens and ends no answer" for token in outside]
        if len(outside) == len(self.stop):
            found.append("no file says which token ends an answer: answers go on until the token limit or a stop string")
        return tuple(found)

    def summary(self) -> dict[str, Any]:
        """What was found, as JSON."""
        templates = {"chat_templates": list(self.templates), "unusable": self.unusable}
        return {"stop": self.stop, "bos": self.bos, "special": self.special, **templates, "warnings": self.all_warnings}

    def lines(self) -> Iterator[str]:
        """What was found, a line each."""
        stops = "; ".join(f"{self._token(token)} from {', '.join(places)}" for token, places in self.stop.items())
        yield f"  stop tokens {stops or 'none'}"
        yield f"  first token {'none' if self.bos is None else self._token(self.bos)}"
        unusable = [f"{name} (unusable)" for name in self.unusable]
        yield f"  chat templates {', '.join([*self.templates, *unusable]) or 'none'}"

    def _token(self, token: int) -> str:
        return f"{token} {self.names[token]!r}" if token in self.names else f"{token} (no token)"


def _file_name(index: int, name: str) -> str:
    """The default template has the name that transformers gives it; other names may hold anything."""
    if name == "default":
        return TEMPLATE_FILE
    return f"chat_template.{name if re.fullmatch(r'[A-Za-z0-9_-]{1,40}', name) else index}.jinja"
