"""Constraints for tests: schemas of many kinds, and a tokenizer whose tokens are letters and pieces of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.constraints.grammars import Grammars
from runtime.constraints.state import ConstraintState
from runtime.sampling_params import Constraint, SamplingParams

PIECES = [
    *(chr(code) for code in range(32, 127)), "\n", "\t", "é", "日", "\u00ff", '{"', '":', '": ', '", "', '"}', "}}", "[]", "{}", "true",
    "false", "null", "name", "age", "na", "me", "12", "0.", "yes", "no", " ", "  ", "    ", "\n  ", '"name"', '"name":', "item", "id", "00",
    "-1", "ab",
]  # fmt: skip
PARTS = [*dict.fromkeys(piece.encode() for piece in PIECES), *(bytes([byte]) for byte in range(0x80, 0x100))]
"""Pieces of JSON, and the bytes of other characters."""
FEW = [b"a", b"b", b"ab", b"1", b"{", b"}", b'"', b":", b",", b'{"', b'":']
"""As many as the toy target has tokens, but for the last one, which ends its answers."""
TOY_CONSTRAINTS = [
    Constraint.regex("(ab|1,){2,9}"),
    Constraint.choice(["aabab", "ab:ab:ab", "1,1,1,1,1", "b"]),
    Constraint.json_schema({"type": "object", "properties": {"ab": {"enum": [1, 11, "a"]}, "bab": {"const": "abab"}}, "required": ["ab"]}),
    Constraint.grammar('start: "{" ("a" | start)* "}"'),
    Constraint.grammar('root ::= "ab1" ("," [ab]+)+'),
    Constraint.json_object(),
    Constraint.answer("start: thought @form\nthought[lazy]: /[ab1]*}/", Constraint.regex("(ab|1,){2,9}")),  # reasoning that ends with }
    Constraint.answer(
        'start: ("{" TEXT <[10]>)? said\nTEXT: /[ab1]*/\nsaid: @form | call+\ncall: "1" %json {"const": {"ab": 1}}',
        Constraint.choice(["aabab", "b"]),
    ),
]
"""What can be written with these."""


class PiecesTokenizer:
    """A tokenizer of ``pieces``, by longest match; the token after them is special and ends an answer."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces, self.stop = pieces, len(pieces)
        self.hidden = {self.stop: "<end>"}

    def token_bytes(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        return (b"<end>" if special else b"") if token == self.stop else self._pieces[token]

    def encode_raw(self, text: str) -> list[int]:
        left, ids = text.encode(), []
        while left:
            fitting = [token for token, piece in enumerate(self._pieces) if left.startswith(piece)]
            ids.append(max(fitting, key=lambda token: len(self._pieces[token])))
            left = left[len(self._pieces[ids[-1]]) :]
        return ids


def grammars(pieces: Sequence[bytes]) -> Grammars:
    """Those of a PiecesTokenizer."""
    return Grammars(PiecesTokenizer(pieces), len(pieces) + 1, [len(pieces)])  # type: ignore[arg-type]


TOY_GRAMMARS = grammars(FEW)


def toy_constraint(params: SamplingParams) -> ConstraintState | None:
    """The constraint of a request to the toy target."""
    return None if params.constraint is None else TOY_GRAMMARS.state(params.constraint)


def allowed_after(params: SamplingParams, answer: Sequence[int]) -> np.ndarray:
    """Which of the toy's tokens may follow, bool [V], by a new matcher that was asked nothing before."""
    state, scores = toy_constraint(params), np.zeros(len(FEW) + 1)
    assert state is not None
    for token in answer:
        state.push(token)
    state.mask(scores)
    return np.isfinite(scores)


def text_of(pieces: Sequence[bytes], tokens: Sequence[int]) -> str:
    """The text of tokens, without the stop token."""
    return b"".join(pieces[token] for token in tokens if token != len(pieces)).decode()


def schemas(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Random JSON schemas in the manner of JSONSchemaBench: nested objects and arrays, enums, $ref, patterns, bounds, unicode."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        definitions = {f"d{at}": _schema(random, 1) for at in range(2)}
        yield {**_object(random, 2), "$defs": definitions}


def _schema(random: np.random.Generator, depth: int) -> dict[str, Any]:
    makers = [
        lambda: {"type": "integer", "minimum": int(random.integers(-50, 0)), "maximum": int(random.integers(0, 500))},
        lambda: {"type": "number", "exclusiveMinimum": 0, "maximum": 10.5},
        lambda: {"type": "string", "maxLength": int(random.integers(1, 9))},
        lambda: {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$"},
        lambda: {"enum": ["red", "日本", 'quo"te', 3, None][: int(random.integers(1, 6))]},
        lambda: {"const": {"é": [1, 2]}},
        lambda: {"type": "boolean"},
        lambda: {"type": ["null", "integer"]},
        lambda: {"type": "string", "format": "date"},
        lambda: {"anyOf": [{"type": "boolean"}, {"type": "string", "minLength": 1, "maxLength": 3}]},
    ]
    if depth:
        makers += [
            lambda: _object(random, depth - 1),
            lambda: {"type": "array", "items": _schema(random, depth - 1), "minItems": int(random.integers(0, 2)), "maxItems": 3},
            lambda: {"$ref": f"#/$defs/d{int(random.integers(2))}"} if depth > 1 else {"type": "null"},
        ]
    return dict(makers[int(random.integers(len(makers)))]())


def _object(random: np.random.Generator, depth: int) -> dict[str, Any]:
    names = ["name", "age", "id", "ünï", "long key of an item", "item"]
    chosen = random.permutation(names)[: int(random.integers(1, 4))].tolist()
    required = [name for name in chosen if random.random() < 0.7]
    properties = {name: _schema(random, depth) for name in chosen}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def valid(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether ``text`` is JSON that follows ``schema``, by the jsonschema package."""
    import jsonschema

    try:
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True
