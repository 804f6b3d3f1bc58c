"""Request bodies: which fields are accepted, and how the others are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import SamplingParams
from runtime.serve.errors import ApiError
from runtime.serve.openai.body import parse_body
from runtime.serve.openai.requests import ChatBody, CompletionBody, GenerationRequest, chat_request, completion_request

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> GenerationRequest:
    return chat_request(parse_body(ChatBody, json.dumps({"messages": HELLO, **fields}).encode()), 4)


def completion(**fields: Any) -> GenerationRequest:
    return completion_request(parse_body(CompletionBody, json.dumps({"prompt": "Hello", **fields}).encode()))


def test_defaults_are_openai_s() -> None:
    request = chat()
    assert (request.params, request.policy, request.stream) == (SamplingParams(temperature=1.0, max_new_tokens=None), None, False)
    assert completion().params.max_new_tokens == 16


def test_every_field_reaches_the_request() -> None:
    request = chat(
        model="m", temperature=0.5, top_p=0.9, top_k=7, seed=-1, max_completion_tokens=9, stop=["a", "b"], stream=True,
        stream_options={"include_usage": True}, logprobs=True, top_logprobs=3, policy="fixed", user="me", priority=-3, deadline=2.5,
    )  # fmt: skip
    params = SamplingParams(temperature=0.5, top_k=7, top_p=0.9, seed=2**64 - 1, max_new_tokens=9, stop=("a", "b"), logprobs=3)
    assert request == GenerationRequest(HELLO, "m", params, "fixed", True, True, "me", -3, 2.5)
    assert chat(speculation=False).policy == "none"
    assert chat(logprobs=True).params.logprobs == 0
    assert chat(stop="x").params.stop == ("x",)
    assert chat(user=None, priority=None, deadline=None) == chat()
    plain = SamplingParams(temperature=1.0, max_new_tokens=16, logprobs=5)
    assert completion(prompt=[1, 2], logprobs=5) == GenerationRequest([1, 2], None, plain, None, False, False)
    assert completion(prompt=["one"]).prompt == "one"
    assert completion(prompt=[[1, 2]]).prompt == [1, 2]
    assert completion(prompt=[]).prompt == []  # refused by the Decoder


def test_every_sampler_parameter_reaches_the_request() -> None:
    fields: dict[str, Any] = {
        "min_p": 0.1, "typical_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2, "min_tokens": 3,
        "ignore_eos": True, "stop_token_ids": [5, 6], "bad_words": ["bad"],
    }  # fmt: skip
    request = chat(**fields, logit_bias={"7": 2}, n=3)
    assert request.params == SamplingParams(temperature=1.0, max_new_tokens=None, logit_bias={7: 2}, **fields)
    assert request.count == 3
    nothing: dict[str, Any] = {
        "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "logit_bias": {}, "min_p": 0, "typical_p": 1,
        "min_tokens": 0, "ignore_eos": False, "stop_token_ids": [], "bad_words": [], "n": 1, "best_of": 1,
    }  # fmt: skip
    assert chat(**nothing) == chat(**dict.fromkeys(nothing)) == chat()
    assert completion(**nothing) == completion()


def test_the_name_of_a_message_reaches_the_template() -> None:
    messages = [{"role": "user", "content": "hi", "name": "bob"}]
    assert chat(messages=messages).prompt == messages


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "developer", "content": parts}, *HELLO])
    assert request.prompt == [{"role": "system", "content": "ab"}, *HELLO]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"presence_penalty": True}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 101}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {str(at): 0 for at in range(1025)}}, "logit_bias"),
        ({"min_p": 1.1}, "min_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": "word"}, "bad_words"),
        ({"bad_words": ["x" * 257]}, "bad_words"),
        ({"rounds": 1}, "rounds"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"nonsense": 1}, "nonsense"),
        ({"stream": True, "stream_options": {"nonsense": 1}}, "stream_options.nonsense"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": HELLO * 5}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"policy": "fixed", "speculation": False}, "policy"),
        ({"user": 7}, "user"),
        ({"priority": 1001}, "priority"),
        ({"priority": -1001}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": True}, "deadline"),
    ],
    ids=str,
)
def test_unsupported_and_invalid_fields_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    error = refused.value.body["error"]
    assert refused.value.status == 400
    assert error["param"] is not None
    assert error["param"].startswith(param)
    assert error["type"] == "invalid_request_error"
    assert error["param"] in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [*HELLO, {"role": "king", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"top_p": 0}, "top_p", "decimal_below_min_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"policy": "x" * 99}, "policy", "string_above_max_length"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
        ({"functions": [1]}, "functions", "unsupported_parameter"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
    ],
    ids=str,
)
def test_error_codes_and_paths_are_openai_s(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    error = refused.value.body["error"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    "fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"prompt": ["a", "b"]}, {"logprobs": 21}, {"prompt": None}], ids=str
)
def test_completions_refuse_unsupported_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match=next(iter(fields))):
        completion(**fields)
    with pytest.raises(ApiError, match="logprobs"):
        completion(logprobs=True)


BOTH: dict[str, Any] = {
    "n": 1, "stop": [], "seed": None, "stream": False, "stream_options": None, "logit_bias": {}, "presence_penalty": 0,
    "frequency_penalty": 0.0, "top_logprobs": 0, "tools": [], "functions": [], "tool_choice": "auto", "parallel_tool_calls": True,
    "metadata": {"a": "b"}, "response_format": {"type": "text"}, "modalities": ["text"],
    "audio": None, "reasoning_effort": "none",
    "verbosity": "medium", "service_tier": "auto", "logprobs": False, "temperature": None, "prompt_cache_key": "x",
    "web_search_options": None, "stop_token_ids": [], "skip_special_tokens": True, "chat_template_kwargs": {}, "nonsense": None,
}  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_neutral_and_harmless_values_are_accepted(name: str) -> None:
    assert chat(**{name: BOTH[name]}) == chat()
    assert completion(**{name: BOTH[name]}) == completion()


def test_all_neutral_values_together_and_those_of_one_endpoint() -> None:
    assert chat(**BOTH, function_call="none", max_completion_tokens=None) == chat()
    assert completion(**BOTH, echo=False, suffix=None, best_of=1) == completion()
    for options in ({}, {"include_usage": False}, {"include_usage": None, "include_obfuscation": False}, {"continuous_usage_stats": False}):
        assert chat(stream_options=options) == chat()
        assert chat(stream=True, stream_options=options) == chat(stream=True)


def test_a_byte_order_mark_before_a_body_is_ignored() -> None:
    assert completion_request(parse_body(CompletionBody, b'\xef\xbb\xbf{"prompt": "Hello"}')) == completion()


EMPTY = {"role": "assistant", "content": None}
ANSWER = {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": []}, {"tool_calls": None}, {"function_call": None}, {"annotations": []}, {"annotations": None}, {"refusal": None},
        {"refusal": ""}, {"audio": None}, {"cache_control": {"type": "ephemeral"}}, {"reasoning_content": None},
        {"reasoning_content": ""}, {"provider_specific_fields": {}},
    ],
    ids=str,
)  # fmt: skip
def test_neutral_fields_of_messages_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(messages=[*HELLO, {**ANSWER, **fields}, *HELLO]) == chat(messages=[*HELLO, ANSWER, *HELLO])


def test_null_content_of_an_assistant_is_empty_and_parts_may_have_marks_for_caching() -> None:
    assert chat(messages=[*HELLO, {**EMPTY, "tool_calls": []}, *HELLO]).prompt == [*HELLO, {**EMPTY, "content": ""}, *HELLO]
    parts = [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}, "annotations": []}]
    assert chat(messages=[{"role": "user", "content": parts}]) == chat()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": None}, "messages[0].content"),
        ({**ANSWER, "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0].function"),
        ({**ANSWER, "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({**ANSWER, "annotations": [{"type": "url_citation"}]}, "messages[0].annotations"),
        ({**ANSWER, "refusal": "no"}, "messages[0].refusal"),
        ({**ANSWER, "audio": {"id": "1"}}, "messages[0].audio"),
        ({**ANSWER, "tools": []}, "messages[0].tools"),  # a parameter of the body
        ({**ANSWER, "content": [{"type": "text", "text": "x", "tool_calls": []}]}, "messages[0].content[0].tool_calls"),
    ],
    ids=str,
)
def test_other_fields_of_messages_are_refused_by_name(message: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(messages=[message])
    error = refused.value.body["error"]
    assert (refused.value.status, error["param"]) == (400, param)
    assert param in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages": ' + b"[" * 100_000, b'{"a": "\\ud800"}'])
def test_an_invalid_body_is_refused_in_one_line(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse_body(ChatBody, body)
    assert refused.value.status == 400
    assert "\n" not in refused.value.body["error"]["message"]
