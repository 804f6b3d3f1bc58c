"""OpenAI's client drives /v1/responses: text, functions, forms, reasoning and the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from runtime.tool_calls.choose import choose
from tests.support.serve.fakes import ToyDecoder, engine_failure
from tests.support.serve.planted import PlantedDecoder
from tests.support.serve.serving import Served, serving
from tests.support.tool_models import tool_model

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "description": "Tells the weather.", "parameters": PARAMETERS}
ARGUMENTS = {"city": 'Köln "🙂"'}
USER: dict[str, Any] = {"role": "user", "content": "How is Köln?"}


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., PlantedDecoder]:
    return lambda *answers: PlantedDecoder(tool_model("qwen", tmp_path), *answers)


@pytest.fixture
def call(tmp_path: Path) -> str:
    """The text of a call."""
    return choose(tool_model("qwen", tmp_path)).calls.written([("weather", ARGUMENTS)])


@contextmanager
def client(decoder: ToyDecoder) -> Iterator[tuple[Any, Served]]:
    with (
        serving([decoder]) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=20) as made,
    ):
        yield made.responses, served


def test_text_and_its_events(planted: Callable[..., PlantedDecoder]) -> None:
    with client(planted("<think>\nHm.\n</think>\n\nIt is é.")) as (responses, _):
        whole = responses.create(model="toy", input="Hi", instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=90)
        assert (whole.output_text, whole.status, whole.instructions, whole.metadata) == ("It is é.", "completed", "Be brief.", {"a": "b"})
        assert [each.type for each in whole.output] == ["reasoning", "message"]
        assert whole.output[0].content[0].text == "Hm."
        assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
        assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
        events = list(responses.create(model="toy", input="Hi", stream=True))
    kinds = [each.type for each in events]
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.completed",
    ]
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == "It is é."
    assert events[-1].response.output_text == "It is é."
    assert [each.item.id for each in events if each.type == "response.output_item.done"] == [each.id for each in events[-1].response.output]


def test_a_loop_with_functions(planted: Callable[..., PlantedDecoder], call: str) -> None:
    decoder = planted("I look.\n" + call, "It is 7 degrees.")
    with client(decoder) as (responses, _):
        asked: Any = {"model": "toy", "tools": [WEATHER]}
        history: list[Any] = [USER]
        first = responses.create(input=history, **asked)
        said, called = first.output
        assert (first.output_text, said.type, called.type, called.name) == ("I look.", "message", "function_call", "weather")
        assert json.loads(called.arguments) == ARGUMENTS
        history += [*first.output, {"type": "function_call_output", "call_id": called.call_id, "output": "7 degrees"}]
        assert responses.create(input=history, **asked).output_text == "It is 7 degrees."
    assert "I look." in decoder.prompts[1]
    assert json.dumps(ARGUMENTS, ensure_ascii=False) in decoder.prompts[1]
    assert "<tool_response>\n7 degrees" in decoder.prompts[1]


class City(BaseModel):
    """A city."""

    name: str
    size: int


def test_streaming_helpers_and_parsing(planted: Callable[..., PlantedDecoder], call: str) -> None:
    decoder = planted(call, 'Hm</think>{"name": "é"', '<think>x</think>{"name": "Rom", "size": 3}', '{"name": "Rom", "size": 3}')
    with client(decoder) as (responses, _):
        with responses.stream(model="toy", input="Hi", tools=[WEATHER], tool_choice="required") as stream:
            kinds = [each.type for each in stream]
            final = stream.get_final_response()
        assert kinds.index("response.function_call_arguments.delta") < kinds.index("response.function_call_arguments.done")
        assert json.loads(final.output[0].arguments) == ARGUMENTS
        assert (final.tools[0].name, final.tool_choice) == ("weather", "required")
        with pytest.raises(openai.BadRequestError, match="excludes the planted answer"):
            responses.parse(model="toy", input="Hi", text_format=City)
        assert responses.parse(model="toy", input="Hi", text_format=City).output_parsed == City(name="Rom", size=3)
        with responses.stream(model="toy", input="Hi", text_format=City) as stream:
            parsed = [each.parsed for each in stream if each.type == "response.output_text.done"]
        assert parsed == [City(name="Rom", size=3)]
    named: Any = {"type": "function", "name": "weather"}
    with client(planted(call)) as (responses, _):
        assert responses.create(model="toy", input="Hi", tools=[WEATHER], tool_choice=named).output[0].name == "weather"


def test_an_answer_that_is_cut_is_incomplete(planted: Callable[..., PlantedDecoder], call: str) -> None:
    with client(planted(call)) as (responses, _):
        cut = responses.create(model="toy", input="Hi", tools=[WEATHER], max_output_tokens=30)
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        events = list(responses.create(model="toy", input="Hi", tools=[WEATHER], max_output_tokens=30, stream=True))
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.output[0].status == "incomplete"


def test_settings_of_a_response_may_be_sent_again(toy: ToyDecoder) -> None:
    with client(toy) as (responses, _):
        first = responses.create(model="toy", input="Hi", include=["reasoning.encrypted_content"])
        responses.create(model="toy", input="Hi", reasoning=first.reasoning.model_dump(), truncation=first.truncation)
        responses.create(model="toy", input="Hi", reasoning={"summary": "auto"})


def test_a_failure_in_a_stream_is_an_event(toy: ToyDecoder) -> None:
    toy.seconds = 0.05
    with client(toy) as (responses, _):
        kinds = []
        for event in responses.create(model="toy", input="Hi", stream=True):
            toy.failing = engine_failure()
            kinds.append(event.type)
        assert kinds[-1] == "response.failed"
        assert event.response.error.message == str(engine_failure())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"n": 2}, "n"),
        ({"rounds": True}, "rounds"),
        ({"timings_per_token": True}, "timings_per_token"),
        ({"reasoning": {"effort": "high", "summary": None}}, "reasoning"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": None}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].output"),
        ({"input": [USER] * 300}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [{**WEATHER, "parameters": {"not": {}}, "strict": True}]}, "tools[0].parameters"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "nope"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x" * 300_000}, "input"),
        ({"nonsense": 1}, "nonsense"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str, planted: Callable[..., PlantedDecoder]) -> None:
    with serving([planted("Yes.")]) as served:
        response = served.http.post("/v1/responses", json={"input": "Hi", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert "\n" not in error["message"]
