"""2,000 answers over 100 random schemas, with scores that have no sense of form: each complete one is validated. And any text as a form."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import Constraint
from tests.runtime.constraints.test_grammars import STOP, answer
from tests.support.constraints import PARTS, schemas, text_of, valid


@pytest.mark.parametrize("seed", range(10, 20))
def test_every_answer_follows_its_schema(seed: int) -> None:
    complete = 0
    for at, schema in enumerate(schemas(seed, 10)):
        for number in range(20):
            tokens = answer(Constraint.json_schema(schema), 100 * at + number, repetition_penalty=1 + number % 2 / 5)
            if tokens[-1] == STOP:
                assert valid(text_of(PARTS, tokens), schema), (schema, text_of(PARTS, tokens))
                complete += 1
    assert complete > 180


KEYS = [
    "type",
    "properties",
    "required",
    "items",
    "enum",
    "const",
    "$ref",
    "$defs",
    "anyOf",
    "allOf",
    "oneOf",
    "pattern",
    "minimum",
    "maximum",
]
KEYS += ["minLength", "maxLength", "minItems", "maxItems", "format", "additionalProperties", "prefixItems", "multipleOf", "x-guidance", "a"]
VALUES = ["object", "array", "string", "integer", "number", "null", "boolean", "#", "#/$defs/a", "^a+$", "(a|b){2,5}", "date", "(", "a"]
leaves = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(), st.sampled_from(VALUES), st.text(max_size=5))
objects = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
    max_leaves=20,
)
PIECES = [
    "a",
    "b",
    ".",
    "*",
    "+",
    "?",
    "|",
    "(",
    ")",
    "[",
    "]",
    "{2,9}",
    "{1,500}",
    "\\d",
    "\\w",
    "^",
    "$",
    "-",
    "é",
    "\n",
    "(?i)",
    "\\",
    "/",
    "{,}",
]
WORDS = [
    "start",
    ":",
    "|",
    '"a"',
    "x",
    "\n",
    "/a+/",
    "(",
    ")",
    "*",
    "+",
    "root ::=",
    "[a-z]",
    "%ignore",
    "{1,9}",
    "~",
    "A",
    "%json",
    "{}",
    "<",
    ">",
    ";",
]


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda schema: Constraint.json_schema(schema), st.dictionaries(st.sampled_from(KEYS), objects, max_size=6)),
        (Constraint.regex, st.lists(st.sampled_from(PIECES), max_size=30).map("".join)),
        (Constraint.grammar, st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)),
        (Constraint.grammar, st.lists(st.sampled_from(WORDS), max_size=30).map(lambda words: "start: " + " ".join(words))),
        (Constraint.choice, st.lists(st.text(max_size=5), max_size=4)),
    ],
    ids=["schema", "regex", "text", "grammar", "choice"],
)
def test_any_form_is_compiled_or_refused(make: Callable[[object], Constraint], texts: st.SearchStrategy[object]) -> None:
    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def check(text: object) -> None:
        began, refusal = time.process_time(), "constraint: "
        try:
            answer(make(text), 0, limit=12)
        except ValueError as error:
            refusal = str(error)
        assert refusal.startswith("constraint: ")
        assert "\n" not in refusal
        assert time.process_time() - began < 5

    check()
