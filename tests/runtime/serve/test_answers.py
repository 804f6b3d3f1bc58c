"""resps-serve over a real engine: OpenAI's own client gets the Decoder's answers, and the metrics agree with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from runtime import Constraint, Decoder, SamplingParams
from runtime.serve.cli import command
from tests.support.serve.process import running
from tests.support.serve.serving import until

ROOT = Path(__file__).resolve().parents[3]
MESSAGES: Any = [{"role": "user", "content": "the cat sat on the mat"}]


@pytest.fixture(scope="module", params=["1", "3"], ids=lambda lanes: f"{lanes} lanes")
def url(tiny_engine: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    own = ("--replicas", "2", "--lanes", request.param, "--model-name", "tiny", "--no-warmup")
    with running(tiny_engine, *own, "--past-mib", "0") as (_, url):  # else rounds depend on earlier answers
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"temperature": 0}, SamplingParams()),
        ({"temperature": 1.2, "top_p": 0.9, "seed": 5}, SamplingParams(temperature=1.2, top_p=0.9, seed=5)),
        (
            {"temperature": 0.8, "seed": 6, "extra_body": {"top_k": 9, "speculation": False}},
            SamplingParams(temperature=0.8, top_k=9, seed=6),
        ),
        (
            {"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": 0.5, "logit_bias": {"7": 3}, "extra_body": {"min_tokens": 12}},
            SamplingParams(frequency_penalty=1.5, presence_penalty=0.5, logit_bias={7: 3}, min_tokens=12),
        ),
        (
            {"temperature": 1.1, "seed": 7, "extra_body": {"repetition_penalty": 1.3, "min_p": 0.05, "typical_p": 0.9, "ignore_eos": True}},
            SamplingParams(temperature=1.1, seed=7, repetition_penalty=1.3, min_p=0.05, typical_p=0.9, ignore_eos=True),
        ),
    ],
    ids=["greedy", "sampled", "top-k, plain", "penalties", "typical"],
)
def test_chat_gives_the_decoder_s_answer_whole_and_streamed(
    client: openai.OpenAI, decoder: Decoder, fields: dict[str, Any], sampling: SamplingParams
) -> None:
    expected = decoder.generate(MESSAGES, replace(sampling, max_new_tokens=24))
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, **fields)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == ("stop" if expected.stop == "eos" else "length")
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (expected.stats.prompt_tokens, len(expected.tokens))
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=24, stream=True, stream_options={"include_usage": True}, **fields
    )
    events = list(stream)
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == expected.text
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == len(expected.tokens)
    rounds = sum(event.choices[0].finish_reason is None for event in events if event.choices)
    assert (
        expected.stats.cycles + 1 <= rounds <= expected.stats.cycles + 2
    )  # the first token, one event per round, perhaps the rest of the text


def test_several_answers_whole_and_streamed(client: openai.OpenAI, decoder: Decoder) -> None:
    params = SamplingParams(temperature=1.2, seed=8, max_new_tokens=16, presence_penalty=0.4)
    expected = decoder.answers(MESSAGES, 4, params)
    fields: dict[str, Any] = {"temperature": 1.2, "seed": 8, "max_tokens": 16, "presence_penalty": 0.4, "n": 4, "logprobs": True}
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, **fields)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.message.content for choice in whole.choices] == [each.text for each in expected]
    assert [len(choice.logprobs.content or ()) for choice in whole.choices if choice.logprobs] == [len(each.tokens) for each in expected]
    assert whole.usage is not None
    tokens = sum(len(each.tokens) for each in expected)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (expected[0].stats.prompt_tokens, tokens)
    options: Any = {"include_usage": True}
    events = list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, stream_options=options, **fields))
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == tokens
    choices = [event.choices[0] for event in events[:-1]]
    for index, each in enumerate(expected):
        own = [choice for choice in choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in own) == each.text
        assert [choice.finish_reason is not None for choice in own] == [False] * (len(own) - 1) + [True]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"logit_bias": {"320": 1}}, "logit_bias"), ({"stop_token_ids": [5000]}, "stop_token_ids"), ({"n": 120}, "n")],
    ids=str,
)
def test_what_this_server_cannot_follow_is_refused_by_name(url: str, fields: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{url}/chat/completions", json={"messages": MESSAGES, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["message"].startswith(f"{param}: ")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_answers_have_the_form_that_is_asked_for(client: openai.OpenAI, decoder: Decoder, temperature: float) -> None:
    fields: dict[str, Any] = {"temperature": temperature, "seed": 2, "max_tokens": 150}
    params = SamplingParams(temperature=temperature, seed=2, max_new_tokens=150)
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=schema, n=2, **fields)
    expected = decoder.answers(MESSAGES, 2, replace(params, constraint=Constraint.json_schema(SCHEMA)))
    assert [choice.message.content for choice in whole.choices] == [each.text for each in expected]
    for each in expected:
        assert set(json.loads(each.text)) == {"colour", "count"}
    events = list(client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=schema, stream=True, **fields))
    assert "".join(event.choices[0].delta.content or "" for event in events) == expected[0].text
    chosen = client.completions.create(model="tiny", prompt="the", extra_body={"guided_choice": ["the mat", "a cat"]}, **fields)
    assert chosen.choices[0].text in ("the mat", "a cat")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}},
         "response_format.json_schema.schema"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"grammar": "start: foo"}, "grammar"),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json"),
    ],
    ids=str,
)  # fmt: skip
def test_a_form_that_cannot_be_compiled_is_refused_by_name(url: str, fields: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{url}/chat/completions", json={"messages": MESSAGES, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["message"].startswith(f"{param}: the ")


def test_logprobs_and_stop(client: openai.OpenAI, decoder: Decoder) -> None:
    unstopped = decoder.generate("the cat sat", SamplingParams(max_new_tokens=20))
    stop = unstopped.text[len(unstopped.text) // 2 :][:3]
    expected = decoder.generate("the cat sat", SamplingParams(max_new_tokens=20, stop=[stop], logprobs=2))
    completion = client.completions.create(model="tiny", prompt="the cat sat", max_tokens=20, temperature=0, stop=[stop], logprobs=2)
    (choice,) = completion.choices
    assert (choice.text, choice.finish_reason) == (expected.text, "stop")
    assert choice.logprobs is not None
    assert expected.logprobs is not None
    # in float32, passes over several lanes add up in another order
    assert choice.logprobs.token_logprobs == pytest.approx([each.logprob for each in expected.logprobs], abs=1e-4)
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=4)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert [len(each.top_logprobs) for each in content] == [4] * len(content)
    assert all(each.logprob == each.top_logprobs[0].logprob for each in content)  # greedy decoding takes the likeliest token


@pytest.mark.parametrize("stream", [False, True])
def test_the_joined_bytes_of_logprobs_are_the_answer(client: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {"max_tokens": 60, "temperature": 1.5, "seed": 2, "logprobs": True, "top_logprobs": 20}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream, **fields)
    choices = [event.choices[0] for event in answer] if stream else [answer.choices[0]]
    text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or ()]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace") == text
    alternatives = [each for entry in entries for each in entry.top_logprobs]
    assert all(each.bytes is not None for each in alternatives)
    assert any(each.token == "\ufffd" and len(each.bytes) == 1 for each in alternatives)  # a part of a character


def test_completions_spell_parts_of_characters_as_bytes(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"prompt": "the cat", "max_tokens": 60, "temperature": 1.5, "seed": 2, "logprobs": 20}
    (choice,) = client.completions.create(model="tiny", **fields).choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    parts = [token for token in choice.logprobs.tokens if token.startswith("bytes:")]
    assert all(re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", part) for part in parts)
    assert parts
    assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)
    before = ""
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        if token.isalpha() and token.isascii() and not before.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
        before = token
    streamed = [event.choices[0].logprobs for event in client.completions.create(model="tiny", stream=True, **fields)]
    assert [offset for each in streamed if each for offset in each.text_offset or ()] == choice.logprobs.text_offset


def metrics(url: str) -> dict[str, float]:
    """The metrics by name, summed over replicas and labels."""
    sums: dict[str, float] = {}
    for line in httpx.get(f"{url.removesuffix('/v1')}/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.partition("{")[0].partition(" ")[0], float(line.rpartition(" ")[2])
            sums[name] = sums.get(name, 0.0) + value
    return sums


def test_metrics_agree_with_the_answers_statistics(url: str) -> None:
    before = metrics(url)
    body = {"prompt": "the cat " * 12, "max_tokens": 60, "temperature": 0}
    answers = []
    for _ in range(2):
        answers.append(httpx.post(f"{url}/completions", json=body, timeout=30).json())
        until(lambda: metrics(url)["resps:num_requests_running"] == 0)  # the replica is free a moment after the answer
    after = metrics(url)
    stats = [answer["resps"]["stats"] for answer in answers]
    for name, field in (
        ("prompt_tokens", "prompt_tokens"),
        ("prompt_tokens_cached", "cached_prompt_tokens"),
        ("generation_tokens", "new_tokens"),
        ("spec_decode_num_draft_tokens", "drafted"),
        ("spec_decode_num_accepted_tokens", "accepted"),
        ("policy_actions", "cycles"),
        ("passes", "cycles"),
    ):
        counted = after[f"resps:{name}_total"] - before.get(f"resps:{name}_total", 0.0)
        assert counted == sum(each[field] for each in stats), name
    assert stats[1]["cached_prompt_tokens"] > 0  # went to the replica that caches the prompt
    assert stats[0]["drafted"] > 0
    rows = after["resps:rows_total"] - before.get("resps:rows_total", 0.0)
    assert rows == sum(each["cycles"] + each["drafted"] for each in stats)
    assert after["resps:rows_per_pass"] > 0
    positions = sum(sum(each["num_accepted_tokens_per_pos"]) for each in stats)
    name = "resps:spec_decode_num_accepted_tokens_per_pos_total"
    assert after.get(name, 0.0) - before.get(name, 0.0) == positions == sum(each["accepted"] for each in stats)


def test_the_options_and_metrics_in_the_guide_exist(url: str) -> None:
    from export.tuning.cli import command as tune
    from runtime.serve.triton.repository import command as repository
    from tests.stress.fuzz_serve import main as fuzz
    from tests.stress.load_serve import main as load

    guide = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    options = {option for each in (command, tune, repository, fuzz, load) for parameter in each.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", guide)) - {"--model-repository"} <= options
    page = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
    for name in re.findall(r"resps:[a-z_0-9]+", guide):
        assert f"# TYPE {name} " in page or f"# TYPE {name.removesuffix('_total')} " in page, name


def test_errors_are_openai_s_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="best_of is not supported"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"best_of": 2})
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="unknown policy"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"policy": "magic"})
    with pytest.raises(openai.BadRequestError, match="the context holds") as caught:
        client.completions.create(model="tiny", prompt="the cat " * 5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    long: Any = [{"role": "user", "content": "the cat " * 5000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=long)
    assert (caught.value.code, caught.value.param, caught.value.type) == ("context_length_exceeded", "messages", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=[99999])
    assert (caught.value.code, caught.value.param) == ("invalid_prompt", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
    assert (caught.value.code, caught.value.param) == ("decimal_above_max_value", "temperature")
    assert [model.id for model in client.models.list()] == ["tiny"]
