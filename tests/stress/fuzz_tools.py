"""Sends hostile requests with tools, forms and reasoning to the server's application, over models that write each family's calls.

    python -m tests.stress.fuzz_tools --cases 50000

Every request must get a response in OpenAI's format without an internal error. What an answer says, thinks and calls must be what the
planted answer says. Prints one JSON object; fails with the smallest request that breaks one of these rules.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.tool_calls.choose import AnswerFormat, choose
from runtime.tool_calls.functions import Function, Tools
from runtime.tool_calls.parts import Arguments, Call, Reasoning, Text
from tests.stress.fuzz_serve import RawRequest, application, asked, contents, dumped, roles, texts, values
from tests.support.serve.planted import PlantedDecoder
from tests.support.tool_models import MODELS, tool_model

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"

schemas = st.one_of(
    values, st.sampled_from([{}, {"type": "object"}, {"properties": {"a": {"type": "integer"}}}, {"not": {}}, {"$ref": "#"}])
)
names = st.one_of(st.sampled_from(["f", "g", "f.g"]), texts)
functions = st.fixed_dictionaries({"name": names}, optional={"parameters": schemas, "strict": st.booleans(), "description": texts})
good = st.fixed_dictionaries({"name": st.sampled_from(["f", "g"])}, optional={"strict": st.booleans()})
chat_tool = st.one_of(good, functions).map(lambda each: {"type": "function", "function": each})
response_tool = st.one_of(good, functions).map(lambda each: {"type": "function", **each})
choices = st.one_of(
    st.sampled_from(["none", "auto", "required"]),
    st.sampled_from(["f", "h"]).map(lambda name: {"type": "function", "name": name, "function": {"name": name}}),
    values,
)
arguments = st.one_of(st.sampled_from(["{}", '{"a": "é"}', "", "[", "3"]), texts)
call = st.fixed_dictionaries({"id": texts, "function": st.fixed_dictionaries({"name": texts, "arguments": arguments})})
said = st.fixed_dictionaries({"role": roles, "content": contents})
message = st.one_of(
    said,
    st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.lists(call, max_size=2)}, optional={"reasoning_content": texts}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": contents}, optional={"tool_call_id": texts}),
)
item = st.one_of(
    said,
    st.fixed_dictionaries({"type": st.just("function_call"), "call_id": texts, "name": texts, "arguments": arguments}),
    st.fixed_dictionaries({"type": st.just("function_call_output"), "call_id": texts, "output": contents}),
    st.fixed_dictionaries({"type": st.just("reasoning")}, optional={"content": values}),
    st.fixed_dictionaries({"type": st.one_of(texts, values)}),
)
form = st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object", "json_schema"])}, optional={"schema": schemas, "name": texts})
more = {
    "tool_choice": choices,
    "parallel_tool_calls": st.one_of(st.booleans(), values),
    "stream": st.booleans(),
    "chat_template_kwargs": values,
    "n": st.integers(0, 2),
}
USER = [{"role": "user", "content": "Hi"}]
PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
    "function", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", '{"name": "f", "arguments": {"a": "', '"}', "}", "[", "{", "f", "é🙂", "\n",
    " words ",
]  # fmt: skip


called = st.sampled_from(["@CALL@", "Hm.</think>@CALL@"])


@dataclass(frozen=True)
class Case:
    """A request to a model that says ``answer``, in which @CALL@ stands for a call of f as its family writes it."""

    model: str
    answer: str
    path: str
    body: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    model = draw(st.sampled_from(sorted(MODELS)))
    answer = draw(st.one_of(called, called, st.lists(st.sampled_from(PIECES), max_size=10).map("".join)))
    path, valid = draw(st.sampled_from([CHAT, RESPONSES])), draw(st.booleans())
    if valid:
        tools = draw(st.lists(good, min_size=1, max_size=2, unique_by=lambda each: each["name"]))
        body = draw(st.fixed_dictionaries({}, optional={"stream": st.booleans(), "parallel_tool_calls": st.booleans()}))
        body["tool_choice"] = draw(st.sampled_from(["none", "auto", "required"]))
        if path == CHAT:
            return Case(
                model, answer, path, {**body, "messages": USER, "tools": [{"type": "function", "function": each} for each in tools]}
            )
        return Case(model, answer, path, {**body, "input": USER, "tools": [{"type": "function", **each} for each in tools]})
    usual = {CHAT: {"messages": st.lists(message, min_size=1, max_size=4), "tools": st.lists(chat_tool, max_size=3)}}
    usual[RESPONSES] = {"input": st.one_of(texts, st.lists(item, min_size=1, max_size=4)), "tools": st.lists(response_tool, max_size=3)}
    forms = {CHAT: {"response_format": form}, RESPONSES: {"text": st.fixed_dictionaries({"format": form})}}
    body = draw(st.fixed_dictionaries(usual[path], optional=more | forms[path]))
    if draw(st.booleans()):
        body |= draw(st.dictionaries(st.sampled_from(sorted(body)), values, max_size=1))
    return Case(model, answer, path, body)


def judge(case: Case, decoder: PlantedDecoder, form: AnswerFormat, status: int | None, body: bytes) -> str:
    """The kind of outcome. Raises AssertionError if a rule was broken."""
    if status != 200:
        assert status == 400, (status, body)
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"].splitlines()) == 1
        return "400"
    expected = planted_parts(case, decoder, form)
    found = (chat_parts if case.path == CHAT else response_parts)(body, bool(case.body.get("stream")))
    assert found == expected, (found, expected)
    return "called" if expected[2] else "answered"


Parts = tuple[str, str, list[tuple[str, str]]]
"""What is thought and said, and names and arguments of calls."""


def planted_parts(case: Case, decoder: PlantedDecoder, form: AnswerFormat) -> Parts:
    """By the reader alone, which has tests of its own, of the whole text at once."""
    tools = [each["function"] if case.path == CHAT else each for each in case.body.get("tools") or ()]
    choice, named = case.body.get("tool_choice"), None
    if isinstance(choice, dict):
        named = choice["function"]["name"] if case.path == CHAT else choice["name"]
    listed = tuple(Function(each["name"]) for each in tools)
    asked_for = (
        Tools(listed, choice == "required", named, case.body.get("parallel_tool_calls") is not False)
        if tools and choice != "none"
        else None
    )
    last = decoder.prompts[-1]
    parser = form.parser(asked_for, form.opens_reasoning(last))
    text = shown(decoder, form.shown(asked_for))
    parts = [*parser.push(text), *parser.flush()] if parser else [Text(text)]
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, Call):
            calls.append((part.name, ""))
        elif isinstance(part, Arguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
    thought, words = ("".join(part.text for part in parts if isinstance(part, kind)) for kind in (Reasoning, Text))
    return thought, words, calls


def shown(decoder: PlantedDecoder, marks: tuple[str, ...]) -> str:
    """The planted answer without the special tokens that are not ``marks``."""
    text = decoder.answers[0]
    for hidden in decoder.tokenizer.hidden.values():
        text = text if hidden in marks else text.replace(hidden, "")
    return text


def chat_parts(body: bytes, streamed: bool) -> Parts:
    if not streamed:
        choice = json.loads(body)["choices"][0]
        message = choice["message"]
        calls = [(each["function"]["name"], each["function"]["arguments"]) for each in message.get("tool_calls", ())]
        assert (choice["finish_reason"] == "tool_calls") == bool(calls)
        return message.get("reasoning_content", ""), message["content"] or "", calls
    *events, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    thought = words = ""
    calls = []
    for event in events:
        choice = json.loads(event.removeprefix(b"data: "))["choices"][0]
        if choice["index"] != 0:
            continue
        delta = choice["delta"]
        thought, words = thought + delta.get("reasoning_content", ""), words + delta.get("content", "")
        for piece in delta.get("tool_calls", ()):
            if piece["index"] == len(calls):
                assert piece["id"]
                calls.append((piece["function"]["name"], ""))
            name, so_far = calls[piece["index"]]
            calls[piece["index"]] = (name, so_far + piece["function"]["arguments"])
    return thought, words, calls


def response_parts(body: bytes, streamed: bool) -> Parts:
    if streamed:
        events = [json.loads(each.split(b"\ndata: ")[1]) for each in body.split(b"\n\n")[:-1]]
        assert [each["sequence_number"] for each in events] == list(range(len(events)))
        response = events[-1]["response"]
        deltas = "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta")
        assert deltas == "".join(each["content"][0]["text"] for each in response["output"] if each["type"] == "message")
    else:
        response = json.loads(body)
    assert response["status"] == "completed"
    items = response["output"]
    texts_of = {kind: "".join(each["content"][0]["text"] for each in items if each["type"] == kind) for kind in ("reasoning", "message")}
    return (
        texts_of["reasoning"],
        texts_of["message"],
        [(each["name"], each["arguments"]) for each in items if each["type"] == "function_call"],
    )


def fuzz(count: int) -> Counter[str]:
    """Outcomes of about ``count`` requests. Raises AssertionError for the smallest request that breaks a rule."""
    came: Counter[str] = Counter()
    with ExitStack() as stack:
        folders = {name: Path(stack.enter_context(TemporaryDirectory())) for name in MODELS}
        decoders = {name: PlantedDecoder(tool_model(name, folder), "") for name, folder in folders.items()}
        applications = {name: stack.enter_context(application(decoder)) for name, decoder in decoders.items()}

        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(cases())
        def run(case: Case) -> None:
            decoder, (runner, app) = decoders[case.model], applications[case.model]
            form = choose(decoder.tokenizer)
            decoder.answers[:] = [case.answer.replace("@CALL@", form.calls.written([("f", {})]))]
            request = RawRequest("POST", case.path, (dumped(case.body),), False)
            came[judge(case, decoder, form, *runner.run(asked(app, request)))] += 1

        run()
    return came


@click.command()
@click.option("--cases", "count", type=click.IntRange(min=1), default=1000, show_default=True)
def main(count: int) -> None:
    """Fuzz tools, forms and reasoning."""
    started = time.monotonic()
    came = fuzz(count)
    click.echo(json.dumps({"cases": came.total(), "seconds": round(time.monotonic() - started, 1), **dict(sorted(came.items()))}))


if __name__ == "__main__":
    main()
