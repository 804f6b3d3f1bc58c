"""The model for Triton's Python backend. It is decoupled: it can send one response per round. Lanes and replicas share the weights.

Inputs: ``text_input``; ``chat``: apply the model's chat template; ``stream``: send a response per round instead of one at the end;
``sampling_parameters``: a JSON object with the fields of /v1/completions, checked in the same way. Outputs: ``text_output``; ``report``, a
JSON object with the stop reason and the statistics, in the last response of each answer only, with its index if there are several (`n`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

import numpy as np

from ...decoder import Decoder
from ...errors import ParameterError
from ..errors import deadline_exceeded, invalid, logged, queue_timeout
from ..load import load_replicas
from ..openai.body import parse_body
from ..openai.constraint_fields import renamed
from ..openai.requests import CompletionBody, GenerationRequest, completion_request, expect_policy
from .counters import Counters

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
        self._backend = backend
        self._decoders = decoders
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
                inputs = {name: self._input(request, name) for name in ("text_input", "chat", "stream", "sampling_parameters")}
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
        request = generation_request(inputs["text_input"], bool(inputs["chat"]), inputs["sampling_parameters"])
        expect_policy(request, decoder.policies)
        try:
            decoder.check(request.params)
        except ParameterError as error:
            raise renamed(logged(error), request.constraint_field) from None
        ids, last = decoder.encode(request.prompt), None
        for number in range(request.count):
            if last is not None:
                sender.send(last)
            own = replace(request, params=request.params.for_answer(number))
            last = self._decode_answer(decoder, ids, own, number, sender, arrived, bool(inputs["stream"]))
        return last

    def _decode_answer(
        self, decoder: Decoder, ids: list[int], request: GenerationRequest, number: int, sender: Any, arrived: float, streamed: bool
    ) -> Any:
        """Decode an answer, send its rounds if they are ``streamed``, and return its last response."""
        seconds = min(self._request_seconds, request.deadline or self._request_seconds)
        unsent, params = "", replace(request.params, logprobs=None, deadline=max(0.0, arrived + seconds - monotonic()))
        with decoder.stream(ids, params, policy=request.policy, store=request.store) as stream:
            for chunk in stream:
                if sender.is_cancelled():
                    raise Cancelled(stream.stats.new_tokens)
                if streamed:
                    sender.send(self._response(chunk.text))
                else:
                    unsent += chunk.text
        if stream.stop == "deadline" and not stream.stats.new_tokens:
            raise deadline_exceeded(seconds)
        self._counters.count(str(stream.stop), stream.stats.new_tokens)
        report = {"stop": stream.stop, "stats": stream.stats.as_dict(), **({"index": number} if request.count > 1 else {})}
        return self._response(unsent, json.dumps(report))

    def _send_last(self, sender: Any, last: Any) -> None:
        sender.send(last, flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, text: str, report: str = "") -> Any:
        outputs = {"text_output": text, "report": report}
        tensors = [self._backend.Tensor(name, np.array([[value.encode()]], dtype=np.object_)) for name, value in outputs.items()]
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


def generation_request(text: str, chat: bool, parameters: str | None) -> GenerationRequest:
    """Convert Triton's inputs to a checked request. Raises ApiError."""
    try:
        fields = json.loads(parameters or "{}")
        fields = {} if fields is None else fields
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise invalid("sampling_parameters is not a JSON object", "sampling_parameters")
    request = completion_request(parse_body(CompletionBody, json.dumps({**fields, "prompt": text}).encode()))
    return replace(request, prompt=[{"role": "user", "content": text}]) if chat else request
