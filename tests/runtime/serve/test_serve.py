"""The server over toy Decoders, through real sockets: answers, streams, error bodies and metrics."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.support.serve.client import CHAT, LONG, TEXT, events, post, text_of
from tests.support.serve.fakes import ToyDecoder, toy_answer
from tests.support.serve.serving import Served


def test_a_chat_answer_has_openai_s_format(served: Served) -> None:
    answer = served.http.post("/v1/chat/completions", json={**CHAT, "model": "toy"}).json()
    expected = toy_answer(TEXT.encode())
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "toy"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text_of(expected), "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["prompt_tokens"] == len(TEXT)
    assert answer["usage"]["completion_tokens"] == len(expected)
    assert answer["usage"]["total_tokens"] == len(TEXT) + len(expected)
    assert answer["resps"]["stop"] == "eos"
    assert answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == answer["resps"]["stats"]["accepted"] > 0


@pytest.mark.parametrize("more", [{}, {"max_tokens": 7}, {"seed": 5}, {"stop": ["q", "e"]}, {"logprobs": True, "top_logprobs": 2}], ids=str)
def test_a_stream_has_the_same_answer(served: Served, more: dict[str, Any]) -> None:
    whole = served.http.post("/v1/chat/completions", json={**CHAT, **more}).json()
    body = {**CHAT, **more, "stream": True, "stream_options": {"include_usage": True}}
    response = served.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *rounds, end, usage = events(response.text)
    choices = [each["choices"][0] for each in rounds]
    (choice,) = whole["choices"]
    assert "".join(each["delta"]["content"] for each in choices) == choice["message"]["content"]
    assert choices[0]["delta"]["role"] == "assistant"
    assert all("role" not in each["delta"] for each in choices[1:])
    assert all(each["finish_reason"] is None for each in choices)
    assert all(each["usage"] is None for each in (*rounds, end))
    assert end["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert {each["id"] for each in (*rounds, end, usage)} == {end["id"]}
    if "logprobs" in more:
        tokens = [token for each in choices for token in each["logprobs"]["content"]]
        assert tokens == choice["logprobs"]["content"]
        assert len(tokens) == whole["usage"]["completion_tokens"]
        assert len(tokens[0]["top_logprobs"]) == 2
        assert "".join(token["token"] for token in tokens).rstrip("\0") == choice["message"]["content"]
        assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == choice["message"]["content"]


def test_completions(served: Served) -> None:
    expected = toy_answer(b"Hello")
    body = {"prompt": "Hello", "max_tokens": 5, "logprobs": 1}
    answer = served.http.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text_of(expected[:5]), "length")
    assert choice["logprobs"]["tokens"] == list(choice["text"])
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert choice["logprobs"]["token_logprobs"] == [-0.5] * 5
    *rounds, end = events(served.http.post("/v1/completions", json={**body, "stream": True}).text)
    assert "".join(each["choices"][0]["text"] for each in rounds) == choice["text"]
    assert [at for each in rounds for at in each["choices"][0]["logprobs"]["text_offset"]] == [0, 1, 2, 3, 4]
    assert end["choices"][0]["finish_reason"] == "length"
    ids = served.http.post("/v1/completions", json={"prompt": list(b"Hello"), "max_tokens": 5}).json()
    assert ids["choices"][0]["text"] == choice["text"]


def test_openai_s_client_may_send_neutral_values_and_its_history(served: Served, toy: ToyDecoder) -> None:
    neutral: dict[str, Any] = {"n": 1, "stop": [], "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0, "user": "me"}
    neutral |= {"max_tokens": 4, "seed": None}
    more: dict[str, Any] = {
        "tools": [], "tool_choice": "none", "functions": [], "parallel_tool_calls": False, "response_format": {"type": "text"},
        "metadata": {}, "store": False, "top_logprobs": 0, "reasoning_effort": "none", "modalities": ["text"],
        "audio": None, "verbosity": "medium", "stream_options": {"include_usage": False},
    }  # fmt: skip
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        text = client.completions.create(model="toy", prompt="Hello", echo=False, best_of=1, suffix="", **neutral).choices[0].text
        assert text == client.completions.create(model="toy", prompt="Hello", max_tokens=4).choices[0].text
        history: list[Any] = list(CHAT["messages"])
        for form in (lambda message: message, lambda message: message.model_dump(), lambda message: message.to_dict()):
            message = client.chat.completions.create(model="toy", messages=history, **neutral, **more).choices[0].message
            history += [form(message), {"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": {}}]}]
        raw = served.http.post("/v1/chat/completions", json={"messages": history[-1:], "max_tokens": 4}).json()["choices"][0]["message"]
        history += [raw | {"tool_calls": [], "annotations": []}, *CHAT["messages"]]
        client.chat.completions.create(model="toy", messages=history, max_tokens=4)
    assert bytes(toy.asked[-1]["prompt"]).decode().count("user:Hello;assistant:") == 4


def test_the_parameters_reach_the_decoder(served: Served, toy: ToyDecoder) -> None:
    for policy in ({"policy": "fixed"}, {"speculation": False}, {}):
        assert served.http.post("/v1/chat/completions", json={**CHAT, "top_k": 3, "seed": 9, **policy}).status_code == 200
    assert [each["policy"] for each in toy.asked] == ["fixed", "none", None]
    assert (toy.asked[0]["params"].top_k, toy.asked[0]["params"].seed) == (3, 9)


def test_past_answers_belong_to_a_key_and_may_be_declined(served: Served, toy: ToyDecoder) -> None:
    for headers, more in (({"Authorization": "Bearer a"}, {}), ({}, {"store": False}), ({}, {"store": True})):
        assert served.http.post("/v1/chat/completions", json={**CHAT, **more}, headers=headers).status_code == 200
    assert [(each["tenant"], each["store"]) for each in toy.asked] == [("Bearer a", True), (None, False), (None, True)]
    refused = served.http.post("/v1/chat/completions", json={**CHAT, "store": "no"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_value"),
        ("POST", "/v1/chat/completions", json.dumps({**CHAT, "functions": [1]}).encode(), 400, "unsupported_parameter"),
        ("POST", "/v1/chat/completions", json.dumps({**CHAT, "policy": "magic"}).encode(), 400, "invalid_value"),
        ("POST", "/v1/chat/completions", json.dumps({**CHAT, "model": "other"}).encode(), 404, "model_not_found"),
        ("POST", "/v1/completions", json.dumps({"prompt": "x" * 500}).encode(), 400, "context_length_exceeded"),
        ("POST", "/v1/completions", json.dumps({"prompt": []}).encode(), 400, "invalid_prompt"),
        ("POST", "/v1/completions", b'{"prompt": "' + b"x" * (1 << 20) + b'"}', 413, "body_too_large"),
        ("GET", "/v1/nonsense", b"", 404, "no_such_route"),
        ("GET", "/v1/models/other", b"", 404, "model_not_found"),
        ("GET", "/v1/completions", b"", 405, "no_such_route"),
    ],
)
def test_every_refusal_has_openai_s_error_body(served: Served, method: str, path: str, body: bytes, status: int, code: str) -> None:
    response = served.http.request(method, path, content=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    assert served.http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_the_model_is_listed(served: Served) -> None:
    (model,) = served.http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("toy", 200)
    assert served.http.get("/v1/models/toy").json() == model


def test_metrics_count_times_and_tokens(served: Served) -> None:
    post(served)
    post(served, stream=True)
    served.wait('resps:requests_total{outcome="eos"}', 2)
    tokens = len(toy_answer(LONG.encode()))
    counts = {"request_queue_time": 2, "time_to_first_token": 2, "e2e_request_latency": 2, "inter_token_latency": 2 * tokens - 2}
    for name, count in counts.items():
        assert served.metric(f"resps:{name}_seconds_count") == count, name
    page = served.http.get("/metrics").text
    for name in ("drafts", "draft_tokens", "accepted_tokens"):
        assert f'resps:spec_decode_num_{name}_total{{replica="0"}} 0.0' in page
    assert 'resps:policy_watchdog{replica="0",state="none"} 1.0' in page
