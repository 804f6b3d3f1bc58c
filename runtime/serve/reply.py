"""One request from admission to its last byte: a place, a replica, the answer, and the client who may leave at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..decoder import Decoder, Prompt
from ..request import Chunk
from .errors import ApiError, logged, shutting_down, too_late
from .metrics import Metrics
from .openai_requests import GenerationRequest, expect_policy
from .openai_responses import FINISH, ResponseFormat, Spelling
from .pool import Pool
from .replica import Ended, RunningRequest
from .settings import ServerSettings


@dataclass(frozen=True)
class Services:
    """What every request needs. ``decoder``: any of the replicas', for what several threads may do with it at once."""

    settings: ServerSettings
    pool: Pool
    metrics: Metrics
    decoder: Decoder


class SlowReader(Exception):
    """The client did not take what it was sent."""


class Reply(Response):
    """The answer to ``ask``, whole or as server-sent events.

    What fails before the first byte is raised as ApiError, which becomes a status; what fails later becomes an event with an error.
    A client that leaves ends its request: at once in the queue, after the running round on an engine.
    """

    def __init__(self, house: Services, ask: GenerationRequest, form: ResponseFormat, arrived: float) -> None:
        super().__init__()
        self._house, self._ask, self._form, self._arrived = house, ask, form, arrived
        self._outcome = "error"
        self._queued = 0.0
        self._told = 0.0  # when the last round was handed over, by the clock ``monotonic``

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_left(receive))
        work = asyncio.create_task(self._work(send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                self._outcome = "disconnected"
        except SlowReader:  # leaving without an end closes the connection
            self._outcome = "slow_reader"
        except ApiError as error:
            self._outcome = error.outcome
            raise
        finally:
            for task in (gone, work):
                task.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
            self._house.metrics.requests.labels(self._outcome).inc()
            self._house.metrics.request_seconds.observe(monotonic() - self._arrived)

    async def _work(self, send: Send) -> None:
        house = self._house
        with house.pool.place():
            answer = await self._start()
            try:
                await (self._events if self._ask.stream else self._whole)(answer, send)
            finally:
                answer.cancel()

    async def _start(self) -> RunningRequest:
        """The answer on its way, when its turn has come."""
        house, ask = self._house, self._ask
        expect_policy(ask, house.decoder.policies)
        prompt = await asyncio.to_thread(_encoded, house.decoder, ask.prompt)
        answer = RunningRequest(prompt, ask, self._arrived + house.settings.request_seconds)
        replica = await house.pool.replica(prompt)
        self._queued = monotonic() - self._arrived
        house.metrics.queue_seconds.observe(self._queued)
        house.pool.run(replica, answer)
        return answer

    async def _next(self, answer: RunningRequest) -> Chunk | Ended:
        """Chunk or Ended. Raises ApiError for everything else, an answer that was cut off by a shutdown included."""
        came = await answer.next()
        now = monotonic()
        if isinstance(came, Ended):
            if came.stop == "deadline" and not came.stats.new_tokens:
                raise too_late(self._house.settings.request_seconds)
            if came.stop not in FINISH:
                raise shutting_down()
            self._outcome = came.stop
        elif came.tokens:
            if self._told:
                each = (now - self._told) / len(came.tokens)
                for _ in came.tokens:
                    self._house.metrics.between_seconds.observe(each)
            else:
                self._house.metrics.first_seconds.observe(now - self._arrived)
            self._told = now
        return came

    async def _whole(self, answer: RunningRequest, send: Send) -> None:
        chunks = []
        while not isinstance(came := await self._next(answer), Ended):
            chunks.append(came)
        body = json.dumps(self._form.whole(chunks, came, self._queued), ensure_ascii=False).encode()
        await self._sent(send, {"type": "http.response.start", "status": 200, "headers": _headers("application/json", len(body))})
        await self._sent(send, {"type": "http.response.body", "body": body})

    async def _events(self, answer: RunningRequest, send: Send) -> None:
        form, spelling = self._form, Spelling(self._house.decoder)
        came = await self._next(answer)
        await self._sent(send, {"type": "http.response.start", "status": 200, "headers": _headers("text/event-stream; charset=utf-8")})
        try:
            while not isinstance(came, Ended):
                await self._event(send, form.event(came, spelling))
                came = await self._next(answer)
        except ApiError as error:
            self._outcome = error.outcome
            await self._event(send, error.body)
        else:
            await self._event(send, form.end(came, self._queued))
            if self._ask.include_usage:
                await self._event(send, form.usage(came))
            await self._sent(send, {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await self._sent(send, {"type": "http.response.body", "body": b""})

    async def _event(self, send: Send, what: Mapping[str, Any]) -> None:
        data = b"data: " + json.dumps(what, ensure_ascii=False).encode() + b"\n\n"
        await self._sent(send, {"type": "http.response.body", "body": data, "more_body": True})

    async def _sent(self, send: Send, message: dict[str, Any]) -> None:
        """Raises SlowReader when the client does not take it in time: the connection's own buffer is full."""
        try:
            async with asyncio.timeout(self._house.settings.write_seconds):
                await send(message)
        except TimeoutError:
            raise SlowReader from None


def _encoded(decoder: Decoder, prompt: Prompt) -> list[int]:
    try:
        return decoder.encode(prompt)
    except BaseException as error:  # the tokenizer's panics are no Exceptions
        raise logged(error, "messages" if _is_chat(prompt) else "prompt") from None


def _is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and any(isinstance(each, Mapping) for each in prompt)


async def _left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(kind: str, length: int | None = None) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    return headers if length is None else [*headers, (b"content-length", str(length).encode())]
