"""One request from admission to the last byte of its answer. The client may leave at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..decoder import Decoder
from ..decoding.stats import Stats
from ..request import Chunk
from ..tool_calls.choose import AnswerFormat
from .admission.pool import Pool
from .admission.turn import Turn
from .answers import Answers
from .errors import ApiError, deadline_exceeded, invalid, shutting_down
from .metrics import Metrics
from .observation.record import SCOPE_RECORD, RequestRecord
from .openai.answer import FINISH_REASONS, OpenAnswer
from .openai.requests import GenerationRequest, expect_policy
from .openai.writer import AnswerWriter
from .prepare import Prepared, prepare
from .protection.keys import Key
from .protection.limits import Limits
from .protection.suspects import Suspects
from .replica import Finished
from .settings import ServerSettings


@dataclass(frozen=True)
class Services:
    """What every request needs. ``created``: the time of the start, in seconds since 1970. ``answer_format``: how the model writes answers.
    ``limits``: what keys have used. ``suspects``: bodies that an engine failed at. ``reloading``: held while a tuning is loaded."""

    settings: ServerSettings
    pool: Pool
    metrics: Metrics
    created: int
    answer_format: AnswerFormat
    limits: Limits = field(default_factory=Limits)
    suspects: Suspects = field(default_factory=Suspects)
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def decoder(self) -> Decoder:
        """One of the replicas', for calls that are safe from several threads."""
        return self.pool.replicas[0].decoder

    @property
    def model_card(self) -> dict[str, Any]:
        """The model as /v1/models describes it."""
        card = {"id": self.settings.model, "object": "model", "created": self.created, "owned_by": "resps"}
        own = {"policies": list(self.decoder.policies), "lanes": self.pool.lanes, "draft": self.decoder.draft}
        return {**card, "max_model_len": self.decoder.manifest.limits.context, "resps": own}


@dataclass(frozen=True)
class Asker:
    """``client``: who shares a share of the lanes. ``digest``: SHA-256 of the request's body."""

    client: str
    key: Key
    digest: bytes


class SlowReader(Exception):
    """The client did not read its answer in time."""


class Reply(Response):
    """The answers to ``generation``, as one object or as server-sent events.

    A failure before the first byte raises ApiError, which becomes an HTTP status. A later failure becomes an event with an error. A client
    that leaves ends its request: at once in the queue, after the current round on a lane. ``arrived``: by the clock ``monotonic``.
    ``asker``: who asks.
    """

    def __init__(self, services: Services, generation: GenerationRequest, writer: AnswerWriter, arrived: float, asker: Asker) -> None:
        super().__init__()
        self._services, self._generation, self._writer, self._arrived = services, generation, writer, arrived
        self._turn = _turn(services, generation, arrived, asker)
        self._outcome = "error"
        self._queued = 0.0  # seconds
        self._on_lane_at: float | None = None
        self._first: float | None = None  # when the first token came
        self._stats: list[Stats] = []  # of the finished answers
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
            ended = monotonic()
            self._services.metrics.request_seconds.observe(ended - self._arrived)
            model, stream = self._services.settings.model, self._generation.stream
            scope[SCOPE_RECORD] = RequestRecord(
                model, self._outcome, stream, self._arrived, self._on_lane_at, self._first, ended, self._stats
            )

    async def _answer(self, send: Send) -> None:
        pool, count, most = self._services.pool, self._generation.count, self._services.pool.lanes + self._services.settings.queue
        if count > most:
            raise invalid(f"n: this server has room for {most} answers at once — ask for fewer", "n")
        with ExitStack() as admitted:
            for _ in range(count):
                admitted.enter_context(pool.admit(self._turn))
            prepared, answers = await self._start()
            try:
                await (self._send_events if self._generation.stream else self._send_whole)(prepared, answers, send)
            finally:
                answers.cancel()

    async def _start(self) -> tuple[Prepared, Answers]:
        """Tokenize the prompt, wait for a lane and start decoding."""
        services, generation = self._services, self._generation
        expect_policy(generation, services.decoder.policies)
        prepared = await asyncio.to_thread(prepare, services.decoder, services.answer_format, generation)
        answers = Answers(services.pool, prepared.prompt, prepared.generation, self._turn, self._on_lane)
        await answers.start()
        return prepared, answers

    def _on_lane(self) -> None:
        self._on_lane_at = monotonic()
        self._queued = self._on_lane_at - self._arrived
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
            self._stats.append(item.stats)
            self._services.metrics.count_answer(item.stats)
        elif item.tokens:
            if number in self._last_chunk:
                seconds_per_token = (now - self._last_chunk[number]) / len(item.tokens)
                for _ in item.tokens:
                    self._services.metrics.between_seconds.observe(seconds_per_token)
            else:
                self._services.metrics.first_seconds.observe(now - self._arrived)
                self._first = self._first or now
            self._last_chunk[number] = now
        return number, item

    async def _send_whole(self, prepared: Prepared, answers: Answers, send: Send) -> None:
        opened = self._opened(prepared)
        chunks: list[list[Chunk]] = [[] for _ in opened]
        while any(each.finished is None for each in opened):
            number, item = await self._next(answers)
            if isinstance(item, Finished):
                opened[number].finished = item
            else:
                chunks[number].append(item)
        body = json.dumps(self._writer.whole(opened, chunks, self._queued), ensure_ascii=False).encode()
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": _headers("application/json", len(body))})
        await self._send(send, {"type": "http.response.body", "body": body})

    async def _send_events(self, prepared: Prepared, answers: Answers, send: Send) -> None:
        opened, writer = self._opened(prepared), self._writer
        number, item = await self._next(answers)
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": _headers("text/event-stream; charset=utf-8")})
        try:
            await self._send_each(send, writer.opening())
            while True:
                answer = opened[number]
                if isinstance(item, Finished):
                    answer.finished = item
                    await self._send_each(send, writer.end(answer, self._queued, number))
                    if all(each.finished is not None for each in opened):
                        break
                else:
                    await self._send_each(send, writer.chunk(item, answer, number))
                number, item = await self._next(answers)
        except ApiError as error:
            self._outcome = error.outcome
            await self._send_each(send, [writer.failure(error)])
        else:
            await self._send_each(send, [*writer.closing(opened), None])
        await self._send(send, {"type": "http.response.body", "body": b""})

    def _opened(self, prepared: Prepared) -> list[OpenAnswer]:
        return [prepared.answer(self._services.decoder) for _ in range(self._generation.count)]

    async def _send_each(self, send: Send, events: Sequence[Mapping[str, Any] | None]) -> None:
        for event in events:
            await self._send(send, {"type": "http.response.body", "body": self._writer.encoded(event), "more_body": True})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        """Raises SlowReader when the client does not read in time, so that the connection's buffer stays full."""
        try:
            async with asyncio.timeout(self._services.settings.write_seconds):
                await send(message)
        except TimeoutError:
            raise SlowReader from None


def _turn(services: Services, generation: GenerationRequest, arrived: float, asker: Asker) -> Turn:
    """A client that sets a deadline wants all tokens that it asks for by then; of others the answer is cut there."""
    seconds, tokens = services.settings.request_seconds, 1
    if generation.deadline is not None:
        seconds = min(seconds, generation.deadline)
        tokens = min(generation.params.max_new_tokens or 1, services.decoder.manifest.limits.context)
    return Turn(asker.client, generation.priority, arrived + seconds, seconds, tokens, asker.key, asker.digest)


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(content_type: str, length: int | None = None) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    return headers if length is None else [*headers, (b"content-length", str(length).encode())]
