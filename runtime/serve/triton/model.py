"""What Triton's Python backend runs. Text comes back a round at a time (decoupled); one process holds the weights once for all replicas.

Inputs: ``text_input``; ``chat`` (put it into the model's chat template), ``stream`` (a response per round instead of one), and
``sampling_parameters``, a JSON object with the fields of /v1/completions, checked as there. Outputs: ``text_output``, and with the last
response ``report``, a JSON object: why the answer ended, and its statistics.
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
from ..errors import ApiError, invalid, logged, too_late
from ..load import load_replicas
from ..openai_requests import CompletionBody, GenerationRequest, completion, expect_policy, read
from .counters import Counters

LOOK_SECONDS = 0.05  # how often one that waits for a replica looks whether its client is still there


class Cancelled(Exception):
    """Nobody waits for the answer any more. ``tokens``: made so far."""

    def __init__(self, tokens: int = 0) -> None:
        super().__init__()
        self.tokens = tokens


class TritonPythonModel:
    """Triton's interface: initialize, execute, finalize."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine directory that config.pbtxt names."""
        import triton_python_backend_utils as backend

        given = {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}
        threads = int(given["threads"]) or None
        decoders = load_replicas(Path(given["engine_dir"]), int(given["replicas"]), threads=threads, policy=given["policy"] or None)
        self._backend = backend
        self._decoders = decoders
        self._queue_seconds, self._request_seconds = (float(given[name]) for name in ("queue_seconds", "request_seconds"))
        self._counters = Counters(backend)
        self._free: SimpleQueue[Decoder] = SimpleQueue()
        for each in decoders:
            self._free.put(each)

    def execute(self, requests: list[Any]) -> None:
        """Start what is asked. Waits for a free replica, so that everything else waits in Triton's queue, by Triton's rules."""
        for request in requests:
            sender, until = request.get_response_sender(), monotonic() + self._request_seconds
            try:
                inputs = {name: self._input(request, name) for name in ("text_input", "chat", "stream", "sampling_parameters")}
                decoder = self._replica(sender)
            except Exception as error:  # the others go on
                self._end(sender, self._failed(error))
                continue
            Thread(target=self._answer, args=(decoder, inputs, sender, until), daemon=True).start()

    def _replica(self, sender: Any) -> Decoder:
        """A free one. Raises Cancelled when the client has gone before, ApiError when it takes longer than one may wait in the queue: a
        request that waits here has left Triton's, which would refuse it."""
        end = monotonic() + self._queue_seconds
        while True:
            if sender.is_cancelled():
                raise Cancelled
            try:
                return self._free.get(timeout=LOOK_SECONDS)
            except Empty:
                if monotonic() >= end:
                    line = f"no engine became free within {self._queue_seconds:g} s — send the request again later"
                    raise ApiError(503, line, code="queue_timeout", outcome="queue_timeout") from None

    def finalize(self) -> None:
        """Let what runs end, then free everything."""
        for _ in self._decoders:
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

    def _answer(self, decoder: Decoder, inputs: Mapping[str, Any], sender: Any, until: float) -> None:
        try:
            last = self._decode(decoder, inputs, sender, until)
        except BaseException as error:  # whatever it was, the replica must come back
            last = self._failed(error)
        self._free.put(decoder)
        self._end(sender, last)

    def _decode(self, decoder: Decoder, inputs: Mapping[str, Any], sender: Any, until: float) -> Any:
        ask = asked(inputs["text_input"], bool(inputs["chat"]), inputs["sampling_parameters"])
        expect_policy(ask, decoder.policies)
        ids = decoder.encode(ask.prompt)
        rest, params = "", replace(ask.params, logprobs=None, deadline=max(0.0, until - monotonic()))
        with decoder.stream(ids, params, policy=ask.policy) as stream:
            for chunk in stream:
                if sender.is_cancelled():
                    raise Cancelled(stream.stats.new_tokens)
                if inputs["stream"]:
                    sender.send(self._response(chunk.text))
                else:
                    rest += chunk.text
        if stream.stop == "deadline" and not stream.stats.new_tokens:
            raise too_late(self._request_seconds)
        self._counters.ended(str(stream.stop), stream.stats.new_tokens)
        return self._response(rest, json.dumps({"stop": stream.stop, "stats": stream.stats.as_dict()}))

    def _end(self, sender: Any, last: Any) -> None:
        sender.send(last, flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, text: str, report: str = "") -> Any:
        outputs = {"text_output": text, "report": report}
        tensors = [self._backend.Tensor(name, np.array([[value.encode()]], dtype=np.object_)) for name, value in outputs.items()]
        return self._backend.InferenceResponse(output_tensors=tensors)

    def _failed(self, error: BaseException) -> Any:
        """The last response of a request that has no answer. Triton counts those that were cancelled by themselves."""
        kinds = self._backend.TritonError
        if isinstance(error, Cancelled):
            self._counters.ended("cancelled", error.tokens)
            told = kinds("the request was cancelled", kinds.CANCELLED)
        else:
            known = logged(error)
            self._counters.ended(known.outcome, 0)
            told = kinds(
                str(known), kinds.INVALID_ARG if known.status < 500 else kinds.UNAVAILABLE if known.status in (503, 504) else kinds.INTERNAL
            )
        return self._backend.InferenceResponse(error=told)


def asked(text: str, chat: bool, parameters: str | None) -> GenerationRequest:
    """The request in the Decoder's terms. Raises ApiError."""
    try:
        fields = json.loads(parameters or "{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise invalid("sampling_parameters is no JSON object", "sampling_parameters")
    ask = completion(read(CompletionBody, json.dumps({**fields, "prompt": text}).encode()))
    return replace(ask, prompt=[{"role": "user", "content": text}]) if chat else ask
