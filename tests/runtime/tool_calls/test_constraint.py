"""What a constraint lets a model write is what the reader finds, and every call follows its function's schema."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from runtime.constraints.grammars import Grammars
from runtime.sampling_params import Constraint
from runtime.text.tokenizer import Tokenizer
from runtime.tool_calls.choose import AnswerFormat, choose
from runtime.tool_calls.constraint import answer_constraint
from runtime.tool_calls.functions import Function, Tools
from tests.support.tool_models import MODELS, tool_model

CITY = {"type": "object", "properties": {"city": {"enum": ["Rom", "Köln"]}}, "required": ["city"], "additionalProperties": False}
WEATHER, FREE = Function("weather", "Tells the weather.", CITY), Function("free", None, {"properties": {"x": {"type": "integer"}}})
GOOD, OTHER = ("weather", {"city": "Rom"}), ("free", {"x": 3})
BAD = ("weather", {"town": "Rom"})


class Model:
    """A tokenizer, its format and its grammars."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.form = tokenizer, choose(tokenizer)
        self.grammars = Grammars(tokenizer, 400, [0])

    def allows(self, constraint: Constraint | None, text: str) -> bool:
        """Whether ``text`` may be the whole answer."""
        assert constraint is not None
        state, tokens, scores = self.grammars.state(constraint), self.tokenizer.encode_raw(text), np.zeros(400)
        if state.allowed(tokens) != len(tokens):
            return False
        for token in tokens:
            state.push(token)
        state.mask(scores)
        return bool(np.isfinite(scores[0]))

    def begins(self, constraint: Constraint | None, text: str) -> bool:
        """Whether an answer may begin so."""
        assert constraint is not None
        tokens = self.tokenizer.encode_raw(text)
        return self.grammars.state(constraint).allowed(tokens) == len(tokens)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    return cache(lambda name: Model(tool_model(name, Path(tmp_path_factory.mktemp("model")))))


def constraint(form: AnswerFormat, tools: Tools | None, wanted: Constraint | None = None, opened: bool = False) -> Constraint | None:
    return answer_constraint(form, tools, wanted, opened)


@pytest.mark.parametrize("name", MODELS)
def test_required_and_named_calls(model: Callable[[str], Model], name: str) -> None:
    this = model(name)
    written = this.form.calls.written
    required = constraint(this.form, Tools((WEATHER, FREE), required=True))
    assert this.allows(required, written([GOOD]))
    assert this.allows(required, written([OTHER, GOOD]))
    assert not this.begins(required, written([BAD]))
    assert not this.begins(required, "Hello")
    single = constraint(this.form, Tools((WEATHER, FREE), required=True, parallel=False))
    assert this.allows(single, written([OTHER]))
    assert not this.allows(single, written([OTHER, GOOD]))
    named = constraint(this.form, Tools((WEATHER, FREE), named="free"))
    assert this.allows(named, written([OTHER]))
    assert not this.begins(named, written([GOOD]))


@pytest.mark.parametrize("name", MODELS)
def test_strict_functions_are_held_to_their_schema_though_the_model_may_say_anything(model: Callable[[str], Model], name: str) -> None:
    this = model(name)
    written = this.form.calls.written
    strict = Function("weather", None, CITY, strict=True)
    auto = constraint(this.form, Tools((strict, FREE)))
    assert this.allows(auto, "Hello { or é\n")
    assert this.allows(auto, "")
    assert this.allows(auto, written([GOOD]))
    assert this.allows(auto, written([("free", {"x": "no integer"}), GOOD]))
    assert not this.begins(auto, written([BAD]))
    said = "I look.\n" if this.form.calls.trigger else ""
    assert this.allows(auto, said + written([GOOD]))
    assert not this.begins(auto, said + written([BAD]))
    assert constraint(this.form, Tools((WEATHER, FREE))) is None


@pytest.mark.parametrize("name", MODELS)
def test_a_form_holds_for_what_is_said_beside_calls(model: Callable[[str], Model], name: str) -> None:
    this = model(name)
    for form, good, bad in [
        (Constraint.json_schema(CITY), '{"city": "Köln"}', '{"city": 3}'),
        (Constraint.choice(["yes", "no"]), "no", "maybe"),
        (Constraint.regex("[0-9]+"), "12", "a"),
        (Constraint.grammar('start: "a" start | "b"'), "aab", "c"),
    ]:
        both = constraint(this.form, Tools((WEATHER, FREE)), form)
        assert this.allows(both, good)
        assert this.allows(both, this.form.calls.written([GOOD]))
        assert not this.allows(both, bad)


@pytest.mark.parametrize("name", ["qwen", "deepseek", "deepseek, special"])
def test_constraints_begin_behind_the_reasoning(model: Callable[[str], Model], name: str) -> None:
    this = model(name)
    assert constraint(this.form, None) is None
    for tools, form, good, bad in [
        (None, Constraint.json_schema(CITY), '{"city": "Rom"}', "Rom"),
        (Tools((WEATHER,), required=True), None, this.form.calls.written([GOOD]), this.form.calls.written([BAD])),
    ]:
        unopened = constraint(this.form, tools, form)
        for thought in ("<think>\nHm, é {\n</think>\n\n", "<think></think>", ""):
            assert this.allows(unopened, thought + good)
            assert not this.begins(unopened, thought + bad)
        opened = constraint(this.form, tools, form, opened=True)
        assert this.allows(opened, "Hm.\n</think>\n\n" + good)
        assert not this.allows(opened, good)
        assert not this.begins(opened, "Hm.\n</think>\n\n" + bad)


@pytest.mark.parametrize("name", ["qwen", "deepseek", "deepseek, special"])
def test_what_is_said_does_not_take_in_the_reasoning(model: Callable[[str], Model], name: str) -> None:
    this = model(name)
    call = this.form.calls.written([GOOD])
    auto = constraint(this.form, Tools((Function("weather", None, CITY, strict=True), FREE)))
    anything = constraint(this.form, None, Constraint.regex(r"(.|\n)*x"))
    for said in ("Hello { é", "", "<thin", "I <think> so" if name == "qwen" else "I think so", call):
        assert this.allows(auto, said)
        thought = "Well" if "special" in name else f"Use {call} maybe, no."  # special tokens are no text
        assert this.allows(auto, f"<think>\n{thought}\n</think>\n\n{said}")
    assert not this.allows(auto, f"<think>\nHm {call}")
    assert not this.allows(anything, "<think>\nHmx")
    assert this.allows(anything, "<think>\nHm</think>x")


def test_an_answer_without_reasoning_and_calls_keeps_its_form(model: Callable[[str], Model]) -> None:
    form = Constraint.json_object()
    assert constraint(model("llama").form, None, form) is form
