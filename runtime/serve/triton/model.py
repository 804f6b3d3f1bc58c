"""The model for Triton's Python backend. It is decoupled: it can send one response per round. Lanes and replicas share the weights.

Inputs: either ``request``, a body of /v1/chat/completions or /v1/completions, or ``text_input`` with ``chat``: apply the model's chat
template; ``stream``: send a response per round instead of one at the end; ``sampling_parameters``: a JSON object with the fields of
/v1/completions. Outputs, empty where they do not apply: ``response``, what the server would answer or an event of its stream, as JSON;
``text_output`` and ``report`` (texts.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

import numpy as np

from ...decoder import Decoder
from ...tool_calls.choose import choose
from ..errors import deadline_exceeded, invalid, logged, queue_timeout
from ..load import load_replicas
from ..openai.answer import OpenAnswer
from ..openai.requests import GenerationRequest, expect_policy
from ..prepare import Prepared, prepare
from ..replica import Finished
from .asked import Asked, asked_of
from .counters import Counters

INPUTS = ("request", "text_input", "chat", "stream", "sampling_parameters")
OUTPUTS = ("text_output", "report", "response")
POLL_SECONDS = 0.05  # how often a request that waits for a lane checks whether its client has left


class Cancelled(Exception):
    """The client cancelled its request. ``tokens``: number generated so far."""

    def __init__(self, tokens: int = 0) -> None:
        super().__init__()
        self.tokens = tokens


class TritonPythonModel:
    """Triton's interface: initialize, execute, finalize."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine directory named in config.pbtxt."""
        import triton_python_backend_utils as backend

        parameters = {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}
        threads = int(parameters["threads"]) or None
        decoders = load_replicas(
            Path(parameters["engine_dir"]),
            int(parameters["replicas"]),
            int(parameters["lanes"]) or None,
            threads=threads,
            policy=parameters["policy"] or None,
        )
        self._backend, self._name = backend, args["model_name"]
        self._decoders = decoders
        self._form = choose(decoders[0].tokenizer, parameters["tool_calls"] or None, parameters["reasoning"] or None)
        self._queue_seconds, self._request_seconds = (float(parameters[name]) for name in ("queue_seconds", "request_seconds"))
        self._counters = Counters(backend)
        self._free: SimpleQueue[Decoder] = SimpleQueue()  # an entry for each free lane
        for each in [decoder for decoder in decoders for _ in range(decoder.lanes)]:
            self._free.put(each)

    def execute(self, requests: list[Any]) -> None:
        """Start each request in a thread. Blocks until a lane is free, so all further requests wait in Triton's queue, by its rules."""
        for request in requests:
            sender, arrived = request.get_response_sender(), monotonic()
            try:
                inputs = {name: self._input(request, name) for name in INPUTS}
                decoder = self._acquire(sender)
            except Exception as error:  # the other requests go on
                self._send_last(sender, self._failure(error))
                continue
            Thread(target=self._answer, args=(decoder, inputs, sender, arrived), daemon=True).start()

    def _acquire(self, sender: Any) -> Decoder:
        """Wait for a free lane, at most as long as in Triton's queue, which this request has already left. Raises Cancelled when the
        client leaves first, ApiError when the wait is too long."""
        end = monotonic() + self._queue_seconds
        while True:
            if sender.is_cancelled():
                raise Cancelled
            try:
                return self._free.get(timeout=POLL_SECONDS)
            except Empty:
                if monotonic() >= end:
                    raise queue_timeout(self._queue_seconds) from None

    def finalize(self) -> None:
        """Wait for the running requests, then close all Decoders."""
        for decoder in self._decoders:
            for _ in range(decoder.lanes):
                self._free.get()
        for each in self._decoders:
            each.close()

    def _input(self, request: Any, name: str) -> Any:
        tensor = self._backend.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        value = tensor.as_numpy().reshape(-1)[0]
        try:
            return value.decode() if isinstance(value, bytes) else value.item()
        except UnicodeDecodeError as error:
            raise invalid(f"{name} is not UTF-8 text (byte {error.start})", name) from None

    def _answer(self, decoder: Decoder, inputs: Mapping[str, Any], sender: Any, arrived: float) -> None:
        try:
            last = self._decode(decoder, inputs, sender, arrived)
        except BaseException as error:  # the lane must be released in every case
            last = self._failure(error)
        self._free.put(decoder)
        self._send_last(sender, last)

    def _decode(self, decoder: Decoder, inputs: Mapping[str, Any], sender: Any, arrived: float) -> Any:
        """Decode one answer after the other, send all responses but the last, and return that."""
        asked = asked_of(inputs, self._name)
        expect_policy(asked.generation, decoder.policies)
        prepared = prepare(decoder, self._form, self._as_prompt(decoder, inputs, asked.generation))
        answers, queued = [prepared.answer(decoder) for _ in range(asked.generation.count)], monotonic() - arrived
        events: list[Mapping[str, Any]] = []
        for number, answer in enumerate(answers):
            self._send(sender, events)
            self._decode_answer(decoder, prepared, answer, asked, number, sender, arrived)
            events = list(asked.writer.end(answer, queued, number))
        events += asked.writer.closing(answers)
        self._send(sender, events[:-1])
        return self._response(events[-1])

    @staticmethod
    def _as_prompt(decoder: Decoder, inputs: Mapping[str, Any], generation: GenerationRequest) -> GenerationRequest:
        """A chat of ``text_input`` as token ids: its answer is text, whatever the model's calls and reasoning look like."""
        return replace(generation, prompt=decoder.encode(generation.prompt)) if inputs["chat"] else generation

    def _decode_answer(
        self, decoder: Decoder, prepared: Prepared, answer: OpenAnswer, asked: Asked, number: int, sender: Any, arrived: float
    ) -> None:
        """Decode an answer and send its rounds, as its writer has them."""
        request = prepared.generation
        seconds = min(self._request_seconds, request.deadline or self._request_seconds)
        params = replace(request.params.for_answer(number), deadline=max(0.0, arrived + seconds - monotonic()))
        with decoder.stream(prepared.prompt, params, policy=request.policy, store=request.store) as stream:
            for chunk in stream:
                if sender.is_cancelled():
                    raise Cancelled(stream.stats.new_tokens)
                self._send(sender, asked.writer.chunk(chunk, answer, number))
        if stream.stop == "deadline" and not stream.stats.new_tokens:
            raise deadline_exceeded(seconds)
        self._counters.count(str(stream.stop), stream.stats.new_tokens)
        answer.finished = Finished(str(stream.stop), stream.stats)

    def _send(self, sender: Any, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            sender.send(self._response(event))

    def _send_last(self, sender: Any, last: Any) -> None:
        sender.send(last, flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, outputs: Mapping[str, str]) -> Any:
        values = {name: outputs.get(name, "") for name in OUTPUTS}
        tensors = [self._backend.Tensor(name, np.array([[value.encode()]], dtype=np.object_)) for name, value in values.items()]
        return self._backend.InferenceResponse(output_tensors=tensors)

    def _failure(self, error: BaseException) -> Any:
        """The last response of a failed or cancelled request. Counts it."""
        kinds = self._backend.TritonError
        if isinstance(error, Cancelled):
            self._counters.count("cancelled", error.tokens)
            triton_error = kinds("the request was cancelled", kinds.CANCELLED)
        else:
            api_error = logged(error)
            self._counters.count(api_error.outcome, 0)
            status = api_error.status
            kind = kinds.INVALID_ARG if status < 500 else kinds.UNAVAILABLE if status in (503, 504) else kinds.INTERNAL
            triton_error = kinds(str(api_error), kind)
        return self._backend.InferenceResponse(error=triton_error)
