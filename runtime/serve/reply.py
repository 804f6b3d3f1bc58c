"""One request from admission to the last byte of its answer. The client may leave at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..decoder import Decoder
from ..request import Chunk
from .admission.line import Turn
from .admission.pool import Pool
from .answers import Answers
from .errors import ApiError, deadline_exceeded, invalid, logged, shutting_down
from .metrics import Metrics
from .openai.constraint_fields import renamed
from .openai.requests import GenerationRequest, expect_policy
from .openai.responses import FINISH_REASONS, Answered, ResponseFormat, TokenSpeller
from .replica import Finished
from .settings import ServerSettings


@dataclass(frozen=True)
class Services:
    """What every request needs. ``decoder``: one of the replicas', for calls that are safe from several threads. ``created``: the time of
    the start, in seconds since 1970."""

    settings: ServerSettings
    pool: Pool
    metrics: Metrics
    decoder: Decoder
    created: int

    @property
    def model_card(self) -> dict[str, Any]:
        """The model as /v1/models describes it."""
        card = {"id": self.settings.model, "object": "model", "created": self.created, "owned_by": "resps"}
        own = {"policies": list(self.decoder.policies), "lanes": self.pool.lanes, "draft": self.decoder.draft}
        return {**card, "max_model_len": self.decoder.manifest.limits.context, "resps": own}


class SlowReader(Exception):
    """The client did not read its answer in time."""


class Reply(Response):
    """The answers to ``generation``, as one object or as server-sent events.

    A failure before the first byte raises ApiError, which becomes an HTTP status. A later failure becomes an event with an error. A client
    that leaves ends its request: at once in the queue, after the current round on a lane. ``arrived``: by the clock ``monotonic``.
    ``client``: who shares a share of the lanes.
    """

    def __init__(
        self, services: Services, generation: GenerationRequest, response_format: ResponseFormat, arrived: float, client: str
    ) -> None:
        super().__init__()
        self._services, self._generation, self._format, self._arrived = services, generation, response_format, arrived
        self._turn = _turn(services, generation, arrived, client)
        self._outcome = "error"
        self._queued = 0.0  # seconds
        self._last_chunk: dict[int, float] = {}  # by answer: when its last chunk arrived, by the clock ``monotonic``

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnect = asyncio.create_task(_disconnected(receive))
        answer = asyncio.create_task(self._answer(send))
        try:
            await asyncio.wait({disconnect, answer}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
            else:
                self._outcome = "disconnected"
        except SlowReader:  # returning without a last message closes the connection
            self._outcome = "slow_reader"
        except ApiError as error:
            self._outcome = error.outcome
            raise
        finally:
            for task in (disconnect, answer):
                task.cancel()
            await asyncio.gather(disconnect, answer, return_exceptions=True)
            self._services.metrics.requests.labels(self._outcome).inc()
            self._services.metrics.request_seconds.observe(monotonic() - self._arrived)

    async def _answer(self, send: Send) -> None:
        pool, count, most = self._services.pool, self._generation.count, self._services.pool.lanes + self._services.settings.queue
        if count > most:
            raise invalid(f"n: this server has room for {most} answers at once — ask for fewer", "n")
        with ExitStack() as admitted:
            for _ in range(count):
                admitted.enter_context(pool.admit(self._turn))
            answers = await self._start()
            try:
                await (self._send_events if self._generation.stream else self._send_whole)(answers, send)
            finally:
                answers.cancel()

    async def _start(self) -> Answers:
        """Tokenize the prompt, wait for a lane and start decoding."""
        services, generation = self._services, self._generation
        expect_policy(generation, services.decoder.policies)
        prompt = await asyncio.to_thread(_encode, services.decoder, generation)
        answers = Answers(services.pool, prompt, generation, self._turn, self._on_lane)
        await answers.start()
        return answers

    def _on_lane(self) -> None:
        self._queued = monotonic() - self._arrived
        self._services.metrics.queue_seconds.observe(self._queued)

    async def _next(self, answers: Answers) -> tuple[int, Chunk | Finished]:
        """The next chunk or the regular end of an answer. Raises ApiError for a failure, and for an answer that a shutdown cut off."""
        number, item = await answers.next()
        now = monotonic()
        if isinstance(item, Finished):
            if item.stop == "deadline" and not item.stats.new_tokens:
                raise deadline_exceeded(self._turn.seconds)
            if item.stop not in FINISH_REASONS:
                raise shutting_down()
            self._outcome = item.stop
        elif item.tokens:
            if number in self._last_chunk:
                seconds_per_token = (now - self._last_chunk[number]) / len(item.tokens)
                for _ in item.tokens:
                    self._services.metrics.between_seconds.observe(seconds_per_token)
            else:
                self._services.metrics.first_seconds.observe(now - self._arrived)
            self._last_chunk[number] = now
        return number, item

    async def _send_whole(self, answers: Answers, send: Send) -> None:
        count = self._generation.count
        chunks: list[list[Chunk]] = [[] for _ in range(count)]
        finished: dict[int, Finished] = {}
        while len(finished) < count:
            number, item = await self._next(answers)
            if isinstance(item, Finished):
                finished[number] = item
            else:
                chunks[number].append(item)
        every = [Answered(chunks[number], finished[number], self._speller(answers)) for number in range(count)]
        body = json.dumps(self._format.whole(every, self._queued), ensure_ascii=False).encode()
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": _headers("application/json", len(body))})
        await self._send(send, {"type": "http.response.body", "body": body})

    async def _send_events(self, answers: Answers, send: Send) -> None:
        spellers, finished = [self._speller(answers) for _ in range(self._generation.count)], list[Finished]()
        number, item = await self._next(answers)
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": _headers("text/event-stream; charset=utf-8")})
        try:
            while True:
                if isinstance(item, Finished):
                    finished.append(item)
                    await self._send_event(send, self._format.final_event(item, self._queued, number))
                    if len(finished) == len(spellers):
                        break
                else:
                    await self._send_event(send, self._format.chunk_event(item, spellers[number], number))
                number, item = await self._next(answers)
        except ApiError as error:
            self._outcome = error.outcome
            await self._send_event(send, error.body)
        else:
            if self._generation.include_usage:
                await self._send_event(send, self._format.usage_event(finished))
            await self._send(send, {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await self._send(send, {"type": "http.response.body", "body": b""})

    def _speller(self, answers: Answers) -> TokenSpeller:
        return TokenSpeller(self._services.decoder, answers.prompt)

    async def _send_event(self, send: Send, event: Mapping[str, Any]) -> None:
        data = b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
        await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        """Raises SlowReader when the client does not read in time, so that the connection's buffer stays full."""
        try:
            async with asyncio.timeout(self._services.settings.write_seconds):
                await send(message)
        except TimeoutError:
            raise SlowReader from None


def _turn(services: Services, generation: GenerationRequest, arrived: float, client: str) -> Turn:
    """A client that sets a deadline wants all tokens that it asks for by then; of others the answer is cut there."""
    seconds, tokens = services.settings.request_seconds, 1
    if generation.deadline is not None:
        seconds = min(seconds, generation.deadline)
        tokens = min(generation.params.max_new_tokens or 1, services.decoder.manifest.limits.context)
    return Turn(client, generation.priority, arrived + seconds, seconds, tokens)


def _encode(decoder: Decoder, generation: GenerationRequest) -> list[int]:
    try:
        decoder.check(generation.params)
        return decoder.encode(generation.prompt)
    except BaseException as error:  # a panic of the tokenizer is not an Exception
        raise renamed(logged(error, generation.prompt_field), generation.constraint_field) from None


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(content_type: str, length: int | None = None) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    return headers if length is None else [*headers, (b"content-length", str(length).encode())]
