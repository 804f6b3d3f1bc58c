"""Compiling constraints: what is refused and how, what is kept, and that every answer follows its schema."""

from __future__ import annotations

import builtins
import json
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from runtime import Constraint, DecoderBusy, ParameterError, SamplingParams
from runtime.constraints import grammars as module
from runtime.constraints import state as state_module
from runtime.constraints.grammars import KEPT
from runtime.constraints.state import ConstraintState
from runtime.decoding.gumbel import host_samplers
from runtime.decoding.path_rules import PathRules
from runtime.decoding.sampling import TargetOutput
from runtime.decoding.tree import Tree
from tests.support.constraints import PARTS, grammars, schemas, text_of, valid

STOP = len(PARTS)
GRAMMARS = grammars(PARTS)
SAMPLERS = host_samplers(STOP + 1)


def answer(constraint: Constraint, seed: int, limit: int = 600, **fields: Any) -> list[int]:
    """An answer with random scores, which have no sense of form."""
    params = SamplingParams(temperature=1.0, seed=seed, constraint=constraint, **fields)
    random, tokens = np.random.default_rng(seed), list[int]()
    sampler = SAMPLERS(params, PathRules(params, [], {STOP}, [], GRAMMARS.state(constraint)))
    while len(tokens) < limit and (not tokens or tokens[-1] != STOP):
        logits = random.normal(size=(1, 1, STOP + 1)).astype(np.float32) * 3
        tokens.append(sampler(TargetOutput({"logits": logits}, Tree.chain([0]), 0, 1), 0, len(tokens)))
    return tokens


@pytest.mark.parametrize("seed", range(4))
def test_every_answer_follows_its_schema(seed: int) -> None:
    complete = 0
    for at, schema in enumerate(schemas(seed, 25)):
        tokens = answer(Constraint.json_schema(schema), at)
        if tokens[-1] == STOP:
            assert valid(text_of(PARTS, tokens), schema), (schema, text_of(PARTS, tokens))
            complete += 1
    assert complete > 20


def test_other_kinds() -> None:
    import re

    for seed in range(20):
        assert re.fullmatch("[a-c]{2,4}(x|yz)?", text_of(PARTS, answer(Constraint.regex("[a-c]{2,4}(x|yz)?"), seed)))
        assert text_of(PARTS, answer(Constraint.choice(["yes", 'n"o\n', "日本"]), seed)) in ("yes", 'n"o\n', "日本")
        assert re.fullmatch("(no,)+yes", text_of(PARTS, answer(Constraint.grammar('start: ("no" ",")+ "yes"'), seed)))
        assert re.fullmatch("(no,)+[0-9]", text_of(PARTS, answer(Constraint.grammar('root ::= ("no" ",")+ [0-9]'), seed)))
        text = answer(Constraint.json_object(), seed)
        if text[-1] == STOP:
            assert isinstance(json.loads(text_of(PARTS, text)), dict)


@pytest.mark.parametrize("text", ["start: /a+/ /a+/", 'start: "a" start', '%llguidance {"no_forcing": false}\nstart: /a+/ start'])
def test_a_grammar_that_never_ends_goes_on_to_the_limit(text: str) -> None:
    tokens = answer(Constraint.grammar(text), 0, limit=30)
    assert len(tokens) == 30
    assert set(text_of(PARTS, tokens)) == {"a"}


def test_white_space_is_bounded_whatever_the_schema_says() -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"const": 1}},
        "required": ["id"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_pattern": "[ ]*"},
    }
    spaces = {PARTS.index(each): 50.0 for each in (b" ", b"  ", b"    ", b"\n")}
    tokens = answer(Constraint.json_schema(schema), 0, logit_bias=spaces)
    assert tokens[-1] == STOP
    assert len(text_of(PARTS, tokens)) < 60


def test_the_constraint_wins_over_the_other_rules() -> None:
    tokens = answer(Constraint.choice(["yes"]), 0, min_tokens=9, logit_bias={PARTS.index(b"yes"): -100.0})
    assert (text_of(PARTS, tokens), tokens[-1]) == ("yes", STOP)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constraint.json_schema({"type": "strange"}),
        lambda: Constraint.json_schema({"$ref": "#"}),
        lambda: Constraint.json_schema({"$ref": "#/$defs/none"}),
        lambda: Constraint.json_schema({"$ref": "http://127.0.0.1:9/x.json"}),
        lambda: Constraint.json_schema({"not": {}}),
        lambda: Constraint.json_schema({"type": "string", "pattern": "(a"}),
        lambda: Constraint.json_schema({"type": "integer", "minimum": 5, "maximum": 4}),
        lambda: Constraint.json_schema({"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(4)]} for i in range(12)]}),
        lambda: Constraint.json_schema("{"),
        lambda: Constraint.json_schema("[1]"),
        lambda: Constraint.json_schema({"a": {1, 2}}),  # type: ignore[dict-item]
        lambda: Constraint.json_schema('{"a": ' * 100 + "1" + "}" * 100),
        lambda: Constraint.json_schema('{"a": ' * 100_000),
        lambda: Constraint.json_schema({"description": "x" * 70_000}),
        lambda: Constraint.json_schema({"const": "\ud800"}),
        lambda: Constraint.regex("(a"),
        lambda: Constraint.regex("(?=a)b"),
        lambda: Constraint.regex("(" * 70 + "a" + ")" * 70),
        lambda: Constraint.regex("a" * 9000),
        lambda: Constraint.regex(5),  # type: ignore[arg-type]
        lambda: Constraint.choice([]),
        lambda: Constraint.choice(["a", ""]),
        lambda: Constraint.choice("text"),
        lambda: Constraint.grammar("start: foo"),
        lambda: Constraint.grammar("start: start"),
        lambda: Constraint.grammar("root ::= ("),
        lambda: Constraint.grammar("start: a\na: " + "\n".join(['"x"'] * 1200)),
        lambda: Constraint.grammar(""),
        lambda: Constraint.grammar("\x00"),
        lambda: Constraint("other", "x"),
    ],
    ids=[*map(str, range(30))],
)
def test_what_cannot_be_compiled_is_one_line_within_a_second(make: Any) -> None:
    GRAMMARS.state(Constraint.regex("warm"))
    began = time.process_time()
    with pytest.raises((ValueError, TypeError), match=r"^constraint: ") as refused:
        GRAMMARS.state(make())
    assert time.process_time() - began < 2.5  # a second, on a busy machine
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_chain_of_many_rules_does_not_end_the_process() -> None:
    chain = "\n".join(f"a{at}: a{at + 1}" for at in range(990))
    references = {f"{at:x}": {"$ref": f"#/$defs/{at + 1:x}"} for at in range(2000)} | {f"{2000:x}": {"type": "null"}}
    for deep in (
        Constraint.grammar(f'start: a0\n{chain}\na990: "x"'),
        Constraint.json_schema({"$ref": "#/$defs/0", "$defs": references}),
    ):
        with suppress(ParameterError):  # it may be too much
            GRAMMARS.state(deep)
    assert GRAMMARS.state(Constraint.regex("still here")).forced()


def test_compiling_that_takes_too_long_is_refused_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, compiled = threading.Event(), module._matcher
    monkeypatch.setattr(module, "SECONDS", 0.1)
    monkeypatch.setattr(module, "_matcher", lambda *given: ended.wait(20) and compiled(*given))
    for number in (0, 1, 0):  # once refused, nothing begins again
        with pytest.raises(ParameterError, match=r"takes longer than 0.1 s"):
            GRAMMARS.state(Constraint.regex(f"slow{number}"))
    with pytest.raises(DecoderBusy, match="two others are being compiled"):
        GRAMMARS.state(Constraint.regex("slow2"))
    ended.set()
    monkeypatch.setattr(module, "_matcher", compiled)
    monkeypatch.setattr(module, "SECONDS", 20.0)
    while isinstance(GRAMMARS._compiled[Constraint.regex("slow0")], ParameterError):  # until its thread is through
        time.sleep(0.01)
    assert GRAMMARS.state(Constraint.regex("slow0")).forced()


PAIRS = [f"/[a-d]*{first}{second}[a-d]{{50}}[a-d]*/" for first in "abcd" for second in "abcd" if first != second]
TOO_COMPLEX = Constraint.grammar(f'start: "x" "z" | "y" T\nT: {" & ".join(PAIRS)}')
"""An answer "y..." ends at a limit of llguidance's lexer, which all answers with the constraint share."""


def letters(text: str) -> list[int]:
    return [PARTS.index(each.encode()) for each in text]


def follow(state: ConstraintState, tokens: list[int]) -> None:
    for token in tokens:
        state.mask(scores := np.zeros(STOP + 1))
        assert np.isfinite(scores[token])
        state.push(token)


def test_an_answer_whose_constraint_becomes_too_complex_ends_alone() -> None:
    own = grammars(PARTS)
    neighbour = own.state(TOO_COMPLEX)
    follow(neighbour, letters("x"))
    with pytest.raises(ParameterError, match="too complex"):
        follow(own.state(TOO_COMPLEX), letters("yabcdabcd"))
    follow(neighbour, [*letters("z"), STOP])
    follow(own.state(TOO_COMPLEX), [*letters("xz"), STOP])


def test_drafted_tokens_do_not_use_up_an_answer() -> None:
    own = grammars(PARTS)
    state = own.state(TOO_COMPLEX)
    assert state.allowed(letters("yabcdabcd")) < 9
    follow(state, letters("x"))
    assert state.allowed(letters("z")) == 1
    follow(state, [*letters("z"), STOP])


def test_masks_that_take_too_long_end_their_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "SECONDS", 0.05)
    monkeypatch.setattr(state_module, "TOKEN_SECONDS", 0.0)
    ambiguous = Constraint.grammar('start: s\ns: s s | /[a-z ]/ | ""')
    with pytest.raises(ParameterError, match=r"too complex for this answer: its masks took \d"):
        follow(GRAMMARS.state(ambiguous), letters("abcd" * 100))


def test_compiled_constraints_are_kept_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Constraint] = []
    own, compiled = grammars(PARTS), module._matcher
    monkeypatch.setattr(module, "_matcher", lambda *given: made.append(given[2]) or compiled(*given))
    for schema in ({"type": "null"}, '{"type":  "null"}', {"type": "null"}):
        state = own.state(Constraint.json_schema(schema))  # type: ignore[arg-type]
        state.push(PARTS.index(b"null"))
        state.mask(scores := np.zeros(STOP + 1))  # each begins anew
        assert np.flatnonzero(np.isfinite(scores)).tolist() == [STOP]
    assert len(made) == 1
    for number in range(KEPT + 1):
        own.state(Constraint.regex(f"r{number}"))
    own.state(Constraint.regex("r1"))
    assert len(made) == 1 + KEPT + 1
    own.state(Constraint.json_schema({"type": "null"}))
    assert len(made) == 1 + KEPT + 2


def test_a_missing_package_and_a_model_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = grammars(PARTS)
    endless._stop = []
    with pytest.raises(ParameterError, match="no stop token"):
        endless.state(Constraint.regex("a"))
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: _missing(name) or real(name, *rest))
    with pytest.raises(ParameterError, match=r"llguidance is not installed — pip install 'resps\[constraints\]'"):
        grammars(PARTS).state(Constraint.regex("a"))


def _missing(name: str) -> None:
    if name == "llguidance":
        raise ImportError(name)


def test_a_constraint_says_where_the_answer_ends() -> None:
    with pytest.raises(ValueError, match="ignore_eos"):
        SamplingParams(constraint=Constraint.regex("a"), ignore_eos=True)
    with pytest.raises(TypeError, match="constraint"):
        SamplingParams(constraint="[0-9]+")  # type: ignore[arg-type]
