"""This project or an older checkout of it, several requests at once. Options: engine_dir; policy: none, or tuned (the Decoder's choice);
replicas: Decoders over the same weights; lanes: requests that one Decoder runs at once."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime import Decoder
from scripts.peers.protocol import PeerJob

Came = tuple[int, list[int], bool]


class RespsBatch:
    def __init__(self, job: PeerJob) -> None:
        replicas, lanes = job.options["replicas"], job.options["lanes"]
        options: dict[str, Any] = {"policy": "none", "draft": "none"} if job.options["policy"] == "none" else {}
        if lanes > 1:
            options["lanes"] = lanes
        first = Decoder(Path(job.options["engine_dir"]), threads=1 if replicas > 1 else job.threads, **options)
        self._decoders = [first, *(first.fork() for _ in range(replicas - 1))]
        self._places: SimpleQueue[Any] = SimpleQueue()
        for _ in range(lanes):
            for decoder in self._decoders:
                self._places.put(decoder)
        self._came: SimpleQueue[Came | BaseException] = SimpleQueue()

    def forget(self) -> None:
        for decoder in self._decoders:
            decoder.forget()

    def add(self, number: int, prompt: list[int], new_tokens: int) -> None:
        threading.Thread(target=self._answer, args=(number, prompt, new_tokens), daemon=True).start()

    def step(self) -> list[Came]:
        came = self._came.get()
        if isinstance(came, BaseException):
            raise came
        return [came]

    def _answer(self, number: int, prompt: list[int], new_tokens: int) -> None:
        decoder = self._places.get()
        try:
            with decoder.stream(prompt, **_length(new_tokens)) as stream:
                for chunk in stream:
                    self._came.put((number, list(chunk.tokens), False))
        except BaseException as error:
            self._came.put(error)
        self._places.put(decoder)
        self._came.put((number, [], True))


def _length(new_tokens: int) -> dict[str, Any]:
    """The argument of ``stream`` that limits the answer, also in checkouts before SamplingParams."""
    try:
        from runtime import SamplingParams
    except ImportError:
        return {"max_new_tokens": new_tokens}
    return {"params": SamplingParams(max_new_tokens=new_tokens)}


def open_engine(job: PeerJob) -> RespsBatch:
    return RespsBatch(job)
