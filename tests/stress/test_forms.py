"""2,000 answers over 100 random schemas, with scores that have no sense of form: each complete one is validated."""

from __future__ import annotations

import pytest

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
