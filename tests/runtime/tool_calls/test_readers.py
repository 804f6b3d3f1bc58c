"""Calls and reasoning are found wherever the text of an answer is cut, and what is no call stays text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.tool_calls.call_format import CallFormat
from runtime.tool_calls.choose import FORMATS
from runtime.tool_calls.parts import Arguments, Call, Part, Reasoning, Text
from runtime.tool_calls.reader import AnswerParser, Reader, Steps
from runtime.tool_calls.reasoning import MARKS, ReasoningTokens, read_reasoning

NAMES = ("get_weather", "get", "sum.all")
Read = Callable[[Reader], Steps[None]]


def read(form: CallFormat) -> Read:
    return partial(form.read, names=NAMES)


def parsed(reader: Read, pieces: Sequence[str], most: int | None = None) -> list[Part]:
    """The parts of an answer that comes in ``pieces``, with neighbours of a kind joined."""
    parser = AnswerParser(reader, most)
    joined: list[Part] = []
    for part in [*(part for piece in pieces for part in parser.push(piece)), *parser.flush()]:
        last = joined[-1] if joined else None
        if isinstance(part, Call) or type(last) is not type(part):
            joined.append(part)
        else:
            assert not isinstance(last, Call | None)
            joined[-1] = type(part)(last.text + part.text)
    return joined


def calls(parts: Sequence[Part]) -> list[tuple[str, Any]]:
    """Names and arguments."""
    found: list[tuple[str, Any]] = []
    for at, part in enumerate(parts):
        if isinstance(part, Call):
            arguments = parts[at + 1]
            assert isinstance(arguments, Arguments)
            found.append((part.name, json.loads(arguments.text)))
    return found


def text(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


MARKS_IN_STRINGS = ["</tool_call>", "<tool_call>", "[TOOL_CALLS]", "<｜tool▁call▁end｜>", "```", '"', "\\", "}", "{", "é日🙂", "\n"]
strings = st.one_of(st.text(max_size=6), st.sampled_from(MARKS_IN_STRINGS))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), strings),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)),
    max_leaves=5,
)
made = st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(strings, values, max_size=3)), min_size=1, max_size=3)


@st.composite
def cut(draw: st.DrawFn, answer: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    return [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@given(made, st.sampled_from(["", "Let me see — é."]), st.data())
@settings(max_examples=60, deadline=None)
def test_calls_are_found_wherever_the_answer_is_cut(
    form: CallFormat, wanted: list[tuple[str, Any]], said: str, data: st.DataObject
) -> None:
    said = said if form.trigger else ""
    answer = said + "\n" * bool(said) + form.written(wanted)
    for pieces in (data.draw(cut(answer)), [answer], list(answer)):
        parts = parsed(read(form), pieces)
        assert (calls(parts), text(parts)) == (wanted, said)
    assert calls(parsed(read(form), data.draw(cut(answer)), most=1)) == wanted[:1]


PIECES = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
    "function", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", '{"name": "get", "arguments": {"a": "', '"}', "}", "{",
    "[", "]", ",", ";", '{"name": "other", "parameters": {}}', '{"arguments": {}, "name": "get"}', "get", "{}", "```json", "```", " ",
    "\n", "é🙂", '"', "\\", "x",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.data())
@settings(max_examples=150, deadline=None)
def test_the_parts_of_any_text_do_not_depend_on_its_cuts(form: CallFormat, answer: str, data: st.DataObject) -> None:
    whole = parsed(read(form), [answer])
    assert parsed(read(form), data.draw(cut(answer))) == whole
    assert parsed(read(form), list(answer)) == whole
    if not calls_begun(whole):
        assert text(whole) == answer


def calls_begun(parts: Sequence[Part]) -> bool:
    return any(isinstance(part, Call) for part in parts)


@pytest.mark.parametrize(
    ("form", "answer", "name", "arguments", "said"),
    [
        ("hermes", '<tool_call>\n{"name": "get", "arguments": {"a": 1}}', "get", '{"a": 1}', ""),  # no end
        (
            "hermes",
            '<tool_call>{"name": "get", "arguments": {"a": 1}\n</tool_call>\nDone',
            "get",
            '{"a": 1}',
            "\nDone",
        ),  # a bracket too few
        ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1</tool_call>Done', "get", '{"a": 1', "Done"),
        ("hermes", '<tool_call>\n{"arguments": {"a": 1}, "name": "get"}\n</tool_call>', "get", '{"a": 1}', ""),
        ("hermes", '<tool_call>[{"name": "get", "arguments": {"a": 1}}]</tool_call>', "get", '{"a": 1}', ""),  # SmolLM2's
        ("hermes", '<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>', "get", '{"a": 1}', ""),
        ("hermes", '<tool_call>{"name": "get"}</tool_call>', "get", "{}", ""),
        ("hermes", '<tool_call>{"name": "get", "arguments": {"a": "b', "get", '{"a": "b', ""),  # cut by a limit
        ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1}}\n</tool_', "get", '{"a": 1}', ""),
        ("llama", '<|python_tag|>{"type": "function", "name": "get", "parameters": {"a": 1}}', "get", '{"a": 1}', ""),
        ("llama", '{"name": "get", "parameters": {"a": 1}} and more', "get", '{"a": 1}', " and more"),
        ("mistral", '[TOOL_CALLS][{"name": "get", "arguments": {"a": 1}, "id": "abc"}]', "get", '{"a": 1}', ""),
        ("mistral", '[TOOL_CALLS]get[CALL_ID]abcdefghi[ARGS]{"a": 1}', "get", '{"a": 1}', ""),
        ("mistral-args", '[TOOL_CALLS]get{"a": 1}', "get", '{"a": 1}', ""),
        ("deepseek", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>', "get", '{"a": 1}', ""),
    ],
)
def test_other_ways_to_write_a_call(form: str, answer: str, name: str, arguments: str, said: str) -> None:
    parts = parsed(read(FORMATS[form]), list(answer))
    assert [part for part in parts if not isinstance(part, Text)] == [Call(name), Arguments(arguments)]
    assert text(parts) == said


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("hermes", 'I write <tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "get", "arguments": [1]}</tool_call>'),
        ("hermes", "<tool_call> {oops}</tool_call>"),
        ("llama", '{"name": "Bob", "age": 3}'),
        ("llama", 'It is {"name": "get", "parameters": {}}'),
        ("llama", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("deepseek", "<｜tool▁calls▁begin｜> nothing"),
    ],
)
def test_what_is_no_call_stays_text(form: str, answer: str) -> None:
    assert parsed(read(FORMATS[form]), list(answer)) == [Text(answer)]


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    parser = AnswerParser(read(FORMATS["hermes"]))
    assert parser.push("Hello <tool") == [Text("Hello")]
    assert parser.push("s> are") == [Text(" <tools> are")]
    assert parser.push('<tool_call>{"name": "get", "argu') == []
    assert parser.push('ments": {"a": "x') == [Call("get"), Arguments('{"a": "x')]
    assert parser.push('y"}}</tool_call>') == [Arguments('y"}')]
    assert parser.flush() == []


THINK = MARKS["think"]


@pytest.mark.parametrize(
    ("opened", "answer", "thought", "said", "tokens"),
    [
        (False, "<think>\nHm, é.\n</think>\n\nYes.\n", "Hm, é.", "Yes.\n", len("<think>\nHm, é.\n</think>".encode())),
        (True, "Hm.\n</think>\n\nYes.", "Hm.", "Yes.", len("Hm.\n</think>")),
        (True, "<think>Hm.</think>Yes.", "Hm.", "Yes.", len("<think>Hm.</think>")),
        (True, "Hm", "Hm", "", 2),
        (False, " No <think> at all</think>", "", " No <think> at all</think>", 0),
        (False, "<think>\n\n</think>\n\nYes.", "", "Yes.", len("<think>\n\n</think>")),
    ],
)
def test_reasoning_is_divided_from_what_is_said(opened: bool, answer: str, thought: str, said: str, tokens: int) -> None:
    def read_all(reader: Reader) -> Steps[None]:
        yield from read_reasoning(reader, THINK, opened)
        yield from reader.until()

    for size in (1, 2, 3, 5, 99):
        parts = parsed(read_all, [answer[at : at + size] for at in range(0, len(answer), size)])
        assert "".join(part.text for part in parts if isinstance(part, Reasoning)) == thought
        assert text(parts) == said
        counter = ReasoningTokens(THINK, opened, lambda token: bytes([token]))
        data = answer.encode()
        for at in range(0, len(data), size):
            counter.push(list(data[at : at + size]))
        assert counter.count == tokens
