"""OpenAI's client drives tools, reasoning and forms, over models that write each family's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from runtime.tool_calls.choose import choose
from tests.support.serve.planted import PlantedDecoder
from tests.support.serve.serving import Served, serving
from tests.support.tool_models import MODELS, tool_model

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
USER: dict[str, Any] = {"role": "user", "content": "How is Köln?"}
CALLS = [("weather", {"city": 'Köln "🙂"'}), ("time", {})]
THOUGHT = "<think>\nHm, é.\n</think>\n\n"


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., PlantedDecoder]:
    def make(name: str, *answers: str, **more: Any) -> PlantedDecoder:
        (tmp_path / name).mkdir(exist_ok=True)
        return PlantedDecoder(tool_model(name, tmp_path / name), *answers, **more)

    return make


@contextmanager
def client(decoder: PlantedDecoder, **settings: Any) -> Iterator[tuple[openai.OpenAI, Served]]:
    with (
        serving([decoder], **settings) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=20) as made,
    ):
        yield made, served


def opened(name: str) -> str:
    """What ends the reasoning that the prompt of a model has begun."""
    return "Hm.\n</think>\n\n" if name.startswith("deepseek") else ""


def written(name: str, directory: Path, calls: list[tuple[str, Any]] = CALLS) -> str:
    return choose(tool_model(name, directory)).calls.written(calls)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_come_whole_and_in_pieces(name: str, choice: Any, planted: Callable[..., PlantedDecoder], tmp_path: Path) -> None:
    decoder = planted(name, opened(name) + written(name, tmp_path))
    asked: Any = {"model": "toy", "messages": [USER], "tools": TOOLS, "tool_choice": choice}
    with client(decoder) as (openai_client, _):
        (whole,) = openai_client.chat.completions.create(**asked).choices
        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
        assert whole.message.tool_calls is not None
        ids = set()
        for call, (function, arguments) in zip(whole.message.tool_calls, CALLS, strict=True):
            assert (call.function.name, json.loads(call.function.arguments)) == (function, arguments)
            ids.add(call.id)
        assert len(ids) == 2
        assert all(len(each) == 9 for each in ids) == name.startswith("mistral")
        names, pieces, reasons = {}, {0: "", 1: ""}, []
        for event in openai_client.chat.completions.create(**asked, stream=True):
            (choice_,) = event.choices
            reasons.append(choice_.finish_reason)
            assert not choice_.delta.content
            for piece in choice_.delta.tool_calls or []:
                if piece.index not in names:  # the first piece has the name
                    assert piece.id
                    names[piece.index] = piece.function.name
                pieces[piece.index] += piece.function.arguments
        assert reasons[-1] == "tool_calls"
        assert [(names[at], json.loads(pieces[at])) for at in (0, 1)] == CALLS
    assert (decoder.asked[0]["params"].constraint is not None) == (choice == "required")


@pytest.mark.parametrize("name", MODELS)
def test_a_loop_with_tools(name: str, planted: Callable[..., PlantedDecoder], tmp_path: Path) -> None:
    decoder = planted(name, opened(name) + written(name, tmp_path, CALLS[:1]), opened(name) + "It is 7 degrees.")
    with client(decoder) as (openai_client, _):
        messages: list[Any] = [USER]
        message = openai_client.chat.completions.create(model="toy", messages=messages, tools=TOOLS).choices[0].message
        for call in message.tool_calls or []:
            messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "7 degrees"}]
        answer = openai_client.chat.completions.create(model="toy", messages=messages, tools=TOOLS).choices[0]
    assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", "It is 7 degrees.", None)
    assert "7 degrees" in decoder.prompts[1]
    assert json.dumps(CALLS[0][1], ensure_ascii=False) in decoder.prompts[1]


def test_text_before_calls_and_one_call_only(planted: Callable[..., PlantedDecoder], tmp_path: Path) -> None:
    said = "I look.\n" + written("qwen", tmp_path)
    with client(planted("qwen", said)) as (openai_client, _):
        asked: Any = {"model": "toy", "messages": [USER], "tools": TOOLS}
        both = openai_client.chat.completions.create(**asked).choices[0].message
        assert (both.content, len(both.tool_calls or [])) == ("I look.", 2)
        one = openai_client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0].message
        assert len(one.tool_calls or []) == 1
        none = openai_client.chat.completions.create(**asked, tool_choice="none").choices[0]
        assert (none.message.content, none.message.tool_calls, none.finish_reason) == (said, None, "stop")
        cut = openai_client.chat.completions.create(**asked, max_tokens=len(said) // 3).choices[0]
        assert cut.finish_reason == "length"


def test_a_named_function_is_the_only_one(planted: Callable[..., PlantedDecoder], tmp_path: Path) -> None:
    decoder = planted("llama", written("llama", tmp_path, CALLS[:1]))
    with client(decoder) as (openai_client, _):
        asked: Any = {"model": "toy", "messages": [USER], "tools": TOOLS}
        named: Any = {"type": "function", "function": {"name": "weather"}}
        message = openai_client.chat.completions.create(**asked, tool_choice=named).choices[0].message
        assert [call.function.name for call in message.tool_calls or []] == ["weather"]
        named["function"]["name"] = "time"
        with pytest.raises(openai.BadRequestError, match="excludes the planted answer"):
            openai_client.chat.completions.create(**asked, tool_choice=named)


class Weather(BaseModel):
    """Tells the weather."""

    city: str
    unit: Literal["C", "F"]


def test_parsed_arguments_and_contents(planted: Callable[..., PlantedDecoder], tmp_path: Path) -> None:
    call = written("qwen", tmp_path, [("Weather", {"city": "Köln", "unit": "C"})])
    decoder = planted("qwen", THOUGHT + call, THOUGHT + '{"city": "Rom", "unit": "F"}', call)
    with client(decoder) as (openai_client, _):
        asked: Any = {"model": "toy", "messages": [USER], "tools": [openai.pydantic_function_tool(Weather)]}
        message = openai_client.chat.completions.parse(**asked).choices[0].message
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.parsed_arguments == Weather(city="Köln", unit="C")
        said = openai_client.chat.completions.parse(**asked, response_format=Weather).choices[0].message
        assert (said.parsed, said.tool_calls) == (Weather(city="Rom", unit="F"), None)
        history = [USER, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "7"}]
        with openai_client.chat.completions.stream(**{**asked, "messages": history}) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in kinds
        assert kinds.count("tool_calls.function.arguments.done") == 1
        assert final.message.tool_calls is not None
        assert final.message.tool_calls[0].function.parsed_arguments == Weather(city="Köln", unit="C")
    assert all(each["params"].constraint is not None for each in decoder.asked)  # the function is strict


def test_reasoning_comes_apart_and_is_counted(planted: Callable[..., PlantedDecoder]) -> None:
    for name, answer in (("qwen", THOUGHT + "Yes."), ("deepseek, special", "Hm, é.\n</think>\n\nYes.")):
        decoder = planted(name, answer, block=9)
        reasoning = len(decoder.tokenizer.encode_raw(answer.split("</think>")[0])) + 1
        with client(decoder) as (openai_client, served):
            completion = openai_client.chat.completions.create(model="toy", messages=[USER], logprobs=False)
            message: Any = completion.choices[0].message
            assert (message.content, message.reasoning_content) == ("Yes.", "Hm, é.")
            assert completion.usage is not None
            assert completion.usage.completion_tokens_details is not None
            assert completion.usage.completion_tokens_details.reasoning_tokens == reasoning
            thought = said = ""
            for event in openai_client.chat.completions.create(
                model="toy", messages=[USER], stream=True, stream_options={"include_usage": True}
            ):
                if event.usage is not None and event.usage.completion_tokens_details is not None:
                    assert event.usage.completion_tokens_details.reasoning_tokens == reasoning
                for choice in event.choices:
                    thought += getattr(choice.delta, "reasoning_content", "") or ""
                    said += choice.delta.content or ""
            assert (thought, said) == ("Hm, é.", "Yes.")
            text = served.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 500}).json()["choices"][0]["text"]
            assert "Hm, é." in text
        with client(planted(name, answer), reasoning="none") as (openai_client, _):
            assert "Hm, é." in (openai_client.chat.completions.create(model="toy", messages=[USER]).choices[0].message.content or "")


def test_the_template_is_asked_as_the_request_says(planted: Callable[..., PlantedDecoder]) -> None:
    decoder = planted("qwen", "Yes.")
    with client(decoder) as (openai_client, _):
        openai_client.chat.completions.create(model="toy", messages=[USER], extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        openai_client.chat.completions.create(model="toy", messages=[USER])
    assert [each.endswith("</think>\n\n") for each in decoder.prompts] == [True, False]


CALL: dict[str, Any] = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.mark.parametrize("name", ["qwen", "mistral", "deepseek", "llama"])
@pytest.mark.parametrize("written", ['{"city": "Bonn"', "", "7"])
def test_a_call_comes_back_however_the_model_wrote_it(planted: Callable[..., PlantedDecoder], name: str, written: str) -> None:
    decoder = planted(name, "Yes.")
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**CALL, "id": "callabcde", "function": {"name": "weather", "arguments": written}}],
    }
    result = {"role": "tool", "tool_call_id": "callabcde", "content": "that is no object"}
    item = {"type": "function_call", "call_id": "callabcde", "name": "weather", "arguments": written}
    with serving([decoder]) as served:
        for path, body in (
            ("/v1/chat/completions", {"messages": [USER, called, result]}),
            (
                "/v1/responses",
                {"input": [USER, item, {"type": "function_call_output", "call_id": "callabcde", "output": "that is no object"}]},
            ),
        ):
            assert served.http.post(path, json=body).status_code == 200
    assert written[2:6] in decoder.prompts[0]
    assert decoder.prompts[0] == decoder.prompts[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters.type",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "nonsense": 3}}]}, "tools[0].function.nonsense"),
        (
            {
                "tools": [WEATHER, {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "no"}}}}}],
                "tool_choice": "required",
            },
            "tools[1].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"title": "x" * 70_000}}}]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": f"f{at}", "parameters": {"title": "x" * 30_000}}} for at in range(3)],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"messages": [USER, {"role": "tool", "content": "7"}]}, "messages[1].tool_call_id"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "call_1"}]}, "messages[1].content"),
        ({"messages": [{**USER, "tool_call_id": "call_1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "id": ""}]}]}, "messages[0].tool_calls[0].id"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str, planted: Callable[..., PlantedDecoder]) -> None:
    with serving([planted("qwen", "Yes.")]) as served:
        response = served.http.post("/v1/chat/completions", json={"messages": [USER], **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert "\n" not in error["message"]
    assert param in error["message"]


def test_a_template_s_own_refusal_is_passed_on(planted: Callable[..., PlantedDecoder]) -> None:
    history = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "7"}]
    with serving([planted("mistral", "Yes.")]) as served:
        response = served.http.post("/v1/chat/completions", json={"messages": history})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages")
    assert "length 9" in error["message"]
