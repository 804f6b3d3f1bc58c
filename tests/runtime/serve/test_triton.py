"""Triton: the model repository, and the model with a stand-in for Triton's module."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import Decoder, SamplingParams
from runtime.serve.errors import ApiError
from runtime.serve.triton.asked import generation_request
from runtime.serve.triton.model import Cancelled, TritonPythonModel
from runtime.tool_calls.choose import choose
from tests.support.serve.client import events
from tests.support.serve.fakes import ToyDecoder, toy_answer
from tests.support.serve.planted import PlantedDecoder
from tests.support.serve.serving import serving, until
from tests.support.serve.triton import PROMPT, write
from tests.support.tool_models import tool_model

ROOT = Path(__file__).resolve().parents[3]
USER = {"role": "user", "content": "How is Köln?"}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
]


def test_the_repository_has_the_configuration_and_the_model(tiny_engine: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_engine)
    config = (folder / "config.pbtxt").read_text()
    assert f'key: "engine_dir", value: {{ string_value: "{tiny_engine.resolve()}" }}' in config
    assert "default_timeout_microseconds: 2000000" in config
    assert parameters(folder)["request_seconds"] == "120"
    assert config.count("{") == config.count("}")
    assert "TritonPythonModel" in (folder / "1" / "model.py").read_text()


def parameters(folder: Path) -> dict[str, str]:
    """The parameters in config.pbtxt, as Triton passes them to the model."""
    pairs = re.findall(r'key: "(\w+)", value: \{ string_value: (".*") \}', (folder / "config.pbtxt").read_text())
    return {name: json.loads(value) for name, value in pairs}


class Sender:
    """Stands for Triton's side of one request. ``on_check`` runs each time the model checks whether the client has left."""

    def __init__(self, inputs: dict[str, Any], on_check: Callable[[], None] = lambda: None) -> None:
        self._inputs, self._on_check, self.sent = inputs, on_check, SimpleQueue[Any]()

    def get_response_sender(self) -> Sender:
        return self

    def is_cancelled(self) -> bool:
        self._on_check()
        return False

    def send(self, response: Any, flags: int = 0) -> None:
        self.sent.put(response)


@pytest.fixture
def model(tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], TritonPythonModel]]:
    """Makes the model for a given ``request_seconds``, with a stand-in for the module that exists only in Triton's process."""

    class NoMetrics(Exception):
        pass

    def no_metrics(**_: Any) -> None:
        raise NoMetrics

    no_metrics.COUNTER = 0  # type: ignore[attr-defined]
    backend = SimpleNamespace(
        MetricFamily=no_metrics,
        TritonModelException=NoMetrics,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        TritonError=type("TritonError", (Exception,), {"INVALID_ARG": 1, "UNAVAILABLE": 2, "INTERNAL": 3, "CANCELLED": 4}),
        Tensor=lambda name, values: (name, values[0, 0].decode()),
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(error=error, **dict(output_tensors)),
        get_input_tensor_by_name=lambda request, name: request._inputs.get(name),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    made: list[TritonPythonModel] = []

    def make(request_seconds: float) -> TritonPythonModel:
        values = parameters(write(tmp_path, tiny_engine, request_seconds))
        made.append(TritonPythonModel())
        made[-1].initialize(
            {
                "model_name": "resps",
                "model_config": json.dumps({"parameters": {name: {"string_value": each} for name, each in values.items()}}),
            }
        )
        return made[-1]

    yield make
    for each in made:
        each.finalize()


def request_for(tokens: int, on_check: Callable[[], None] = lambda: None, **more: Any) -> Sender:
    """``more``: further fields of ``sampling_parameters``."""
    texts = {"text_input": PROMPT, "sampling_parameters": json.dumps({"max_tokens": tokens, "temperature": 0, **more})}
    return sending({name: np.array([[text.encode()]], dtype=np.object_) for name, text in texts.items()}, on_check)


def sending(tensors: dict[str, Any], on_check: Callable[[], None] = lambda: None) -> Sender:
    return Sender({name: SimpleNamespace(as_numpy=lambda tensor=tensor: tensor) for name, tensor in tensors.items()}, on_check)


def responses(model: TritonPythonModel, body: Any) -> list[Any]:
    """What a ``request`` with this body gets, read as JSON; for an error the error."""
    asked = sending({"request": np.array([[json.dumps(body).encode()]], dtype=np.object_)})
    model.execute([asked])
    until(model_is_idle(model))
    found = [asked.sent.get() for _ in range(asked.sent.qsize())]
    assert all(each.error or (each.text_output, each.report) == ("", "") for each in found)
    return [each.error or json.loads(each.response) for each in found]


def model_is_idle(model: TritonPythonModel) -> Callable[[], bool]:
    return lambda: model._free.qsize() == len(model._decoders)


def test_sampling_parameters_are_the_fields_of_completions() -> None:
    request = generation_request("hello", False, '{"max_tokens": 7, "temperature": 0, "stop": ["x"]}')
    assert (request.prompt, request.params.max_new_tokens, request.params.temperature, request.params.stop) == ("hello", 7, 0, ("x",))
    assert generation_request("hello", True, None).prompt == [{"role": "user", "content": "hello"}]
    neutral = '{"n": 1, "stop": [], "tools": [], "logit_bias": {}, "logprobs": false, "response_format": {"type": "text"}}'
    assert generation_request("hello", True, neutral) == generation_request("hello", True, "null") == generation_request("hello", True, "")
    for wrong in ("[]", "{", '{"n": 0}', '{"best_of": 2}', '{"max_tokens": "x"}', "[" * 100_000):
        with pytest.raises(ApiError):
            generation_request("hello", False, wrong)


def test_waiting_for_a_replica_is_limited() -> None:
    model = TritonPythonModel()
    model._free, model._queue_seconds = SimpleQueue(), 0.1
    with pytest.raises(ApiError, match="no engine became free") as refused:
        model._acquire(SimpleNamespace(is_cancelled=lambda: False))
    assert (refused.value.status, refused.value.outcome) == (503, "queue_timeout")
    checks = iter((False, True))
    model._queue_seconds = 60.0
    with pytest.raises(Cancelled):
        model._acquire(SimpleNamespace(is_cancelled=lambda: next(checks)))


def test_a_decoder_runs_as_many_requests_as_it_has_lanes(
    model: Callable[[float], TritonPythonModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = ToyDecoder(lanes=3)
    loaded: list[Any] = []
    monkeypatch.setattr("runtime.serve.triton.model.load_replicas", lambda *given, **_: loaded.append(given) or [toy])
    served = model(60.0)
    assert loaded[0][1:] == (2, 1)  # replicas, and lanes of each
    with toy.paused():
        requests = [request_for(5) for _ in range(3)]
        served.execute(requests)
        until(lambda: len(toy.open) == 3)
        assert served._free.empty()
    answers = [each.sent.get(timeout=20) for each in requests]
    assert [each.text_output for each in answers] == ["".join(map(chr, toy_answer(PROMPT.encode())[:5]))] * 3


def test_a_request_has_a_time_limit(model: Callable[[float], TritonPythonModel], decoder: Decoder) -> None:
    whole = decoder.generate(PROMPT, SamplingParams(max_new_tokens=20))
    served, checked = model(2.0), Event()

    def on_check() -> None:  # checked first before a replica is taken, then after the first token
        if checked.is_set():
            sleep(2.0)
        checked.set()

    cut = request_for(20, on_check)
    served.execute([cut])
    last = cut.sent.get(timeout=60)
    assert last.error is None
    assert json.loads(last.report)["stop"] == "deadline"
    assert 0 < len(last.text_output) < len(whole.text)
    assert whole.text.startswith(last.text_output)


def test_several_answers_have_a_last_response_each(model: Callable[[float], TritonPythonModel], decoder: Decoder) -> None:
    expected = decoder.answers(PROMPT, 3, SamplingParams(max_new_tokens=6, temperature=1.0, seed=3, frequency_penalty=1))
    asked = request_for(6, temperature=1.0, seed=3, frequency_penalty=1, n=3)
    model(60.0).execute([asked])
    for index, each in enumerate(expected):
        response = asked.sent.get(timeout=60)
        assert response.error is None
        assert (response.text_output, json.loads(response.report)["index"]) == (each.text, index)
    refused = request_for(6, logit_bias={"99999": 1})
    model(60.0).execute([refused])
    assert "logit_bias" in str(refused.sent.get(timeout=60).error)


def test_a_time_limit_before_the_first_token_is_an_error(model: Callable[[float], TritonPythonModel]) -> None:
    served = model(0.0)
    for _ in range(4):  # more requests than replicas: each must release its own
        late = request_for(20)
        served.execute([late])
        error = late.sent.get(timeout=60).error
        assert error.args == ("the time of a request, 0 s, was over before the first token", error.UNAVAILABLE)
    own = request_for(20, deadline=1e-9)
    model(60.0).execute([own])
    assert "1e-09 s" in str(own.sent.get(timeout=60).error)


@pytest.mark.parametrize("body", [{"messages": [USER], "tools": TOOLS}, {"messages": [USER], "response_format": {"type": "json_object"}}])
def test_bodies_come_out_as_the_server_writes_them(
    body: dict[str, Any], model: Callable[[float], TritonPythonModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = '{"city": "K\u00f6ln"}' if "response_format" in body else calls_of("qwen", tmp_path)
    planted = PlantedDecoder(tool_model("qwen", tmp_path), f"<think>\nHm.\n</think>\n\n{said}")
    monkeypatch.setattr("runtime.serve.triton.model.load_replicas", lambda *_, **__: [planted])
    asked = {"model": "resps", "temperature": 0, **body}
    with serving([planted], model="resps") as served:
        expected = [served.http.post("/v1/chat/completions", json=asked).json(), *events(stream_of(served, asked))]
    triton = model(60.0)
    answered = [*responses(triton, asked), *responses(triton, {**asked, "stream": True})]
    assert [comparable(each) for each in answered] == [comparable(each) for each in expected]
    message = answered[0]["choices"][0]["message"]
    assert message["reasoning_content"] == "Hm."
    assert ("tool_calls" in message) == ("tools" in body)


def calls_of(name: str, directory: Path) -> str:
    return choose(tool_model(name, directory)).calls.written([("weather", {"city": "Köln"})])


def stream_of(served: Any, body: dict[str, Any]) -> str:
    text: str = served.http.post("/v1/chat/completions", json={**body, "stream": True}).text
    return text


def comparable(body: Any) -> Any:
    """Without what differs from one request to the next: ids and times."""
    if isinstance(body, list):
        return [comparable(each) for each in body]
    if not isinstance(body, dict):
        return body
    return {name: comparable(value) for name, value in body.items() if name not in ("id", "created", "queue_seconds", "stats")}


def test_rounds_and_usage_come_with_bodies_and_with_texts(model: Callable[[float], TritonPythonModel], decoder: Decoder) -> None:
    expected, triton = decoder.generate(PROMPT, SamplingParams(max_new_tokens=12)), model(60.0)
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "rounds": True}
    (whole,) = responses(triton, body)
    streamed = responses(triton, {**body, "stream": True, "stream_options": {"include_usage": True}})
    asked = request_for(12, rounds=True)
    triton.execute([asked])
    text = asked.sent.get(timeout=60)
    for rounds in (
        whole["resps"]["rounds"],
        [each["resps"]["round"] for each in streamed if "round" in each.get("resps", {})],
        json.loads(text.report)["rounds"],
    ):
        assert "".join(token["text"] for each in rounds for token in each["tokens"]) == expected.text
        assert {"tree", "path", "ms"} <= rounds[-1].keys()
    assert text.text_output == whole["choices"][0]["text"] == expected.text
    assert streamed[-1]["usage"]["completion_tokens"] == len(expected.tokens)


def test_bodies_that_cannot_be_answered_are_refused(model: Callable[[float], TritonPythonModel]) -> None:
    triton = model(60.0)
    for body, text in (
        ({"prompt": PROMPT, "best_of": 2}, "best_of"),
        ({"prompt": PROMPT, "model": "other"}, "no model 'other'"),
        ({"messages": []}, "messages"),
        ([], "not a JSON object"),
    ):
        (error,) = responses(triton, body)
        assert text in str(error)
    neither = sending({})
    triton.execute([neither])
    assert "either text_input or request" in str(neither.sent.get(timeout=60).error)
