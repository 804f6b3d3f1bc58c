"""A Decoder without a model. Tokens are bytes and answers follow from the prompt; a test can block it, slow it down or let it fail."""

from __future__ import annotations

import itertools
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from runtime import Chunk, DecoderBusy, EngineFailure, ParameterError, PromptError, SamplingParams, Stats
from runtime.decoding.logprobs import TokenLogprob
from runtime.decoding.totals import Totals, TotalsRecorder
from runtime.errors import PromptKind
from runtime.lanes.pace import Pace
from runtime.text.detokenizer import StopStrings
from runtime.text.tokenizer import Chat

CONTEXT, EOS = 200, 0
_NUMBERS = itertools.count(1)


class ToyStream(Iterator[Chunk]):
    """One answer: 0 to 3 accepted letters per round, until the stop token, the limit or a stop string."""

    def __init__(
        self, decoder: ToyDecoder, tokens: list[int], prompt: Sequence[int], stop: Sequence[str], logprobs: int | None, end: float
    ) -> None:
        self._decoder, self._tokens, self._prompt, self._logprobs, self._end = decoder, tokens, prompt, logprobs, end
        self._stops = StopStrings(tuple(stop))
        self.number = next(_NUMBERS)
        self._given, self.rounds, self.accepted, self.cancelled = 0, 0, 0, False
        self.stop: str | None = None

    def __next__(self) -> Chunk:
        decoder = self._decoder
        assert decoder.gate.wait(20), "paused for too long"
        time.sleep(decoder.seconds)
        if decoder.failing and bytes(self._prompt).startswith(decoder.failing_prompt):
            raise decoder.failing
        if self.stop is None:
            self.stop = "cancelled" if self.cancelled else "deadline" if time.monotonic() >= self._end else None
        if self.stop or self._given == len(self._tokens):
            self.stop = self.stop or "length"
            raise StopIteration
        taken, text = [], ""
        for token in self._tokens[self._given : self._given + 1 + self.rounds % 4]:
            taken.append(token)
            if token == EOS:
                self.stop = "eos"
                text += self._stops.flush()
                break
            text += self._stops.push(chr(token))
            if self._stops.found:
                self.stop = "stop_string"
                break
        self._given += len(taken)
        if self.stop is None and self._given == len(self._tokens):
            text += self._stops.flush()
        self.rounds += 1
        self.accepted += len(taken) - 1
        decoder.rounds += 1
        top = None if self._logprobs is None else tuple((each, -1.0) for each in range(self._logprobs))
        logprobs = None if top is None else tuple(TokenLogprob(each, -0.5, top) for each in taken)
        return Chunk(text, tuple(taken), len(taken) - 1, None, logprobs=logprobs)

    @property
    def stats(self) -> Stats:
        zeros = dict.fromkeys(("tokens_per_cycle", "tokens_per_second", "prefill_seconds", "decode_seconds", "draft_seconds"), 0.0)
        return Stats(len(self._prompt), self._given, self.rounds, self.accepted, self.accepted, **zeros, verify_seconds=0.0)

    def cancel(self) -> None:
        self.cancelled = True

    def __enter__(self) -> ToyStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.open.remove(self)
        self._decoder.ended.append(self.stop)


class ToyTokenizer:
    """What the server asks it. Its template knows no tools."""

    hidden: Mapping[int, str] = {}
    template_source = ""

    def token_id(self, text: str) -> None:
        """There is none."""

    def render(self, messages: Sequence[Mapping[str, Any]], tools: object = None, **_: Any) -> str:
        return "".join(f"{each['role']}:{each['content']};" for each in messages)


class ToyDecoder:
    """The part of a Decoder that the server uses.

    ``gate``: rounds wait while it is cleared. ``seconds``: duration of a round. ``failing``: an exception that the next round raises, if
    its prompt starts with ``failing_prompt``. ``rounds``: rounds so far. ``asked``: arguments of each call of ``stream``. ``open``: the
    open streams. ``ended``: stop reason of each finished stream. ``listener``: to
    cycles, which it never tells of.
    """

    policies, draft = ("none", "fixed"), "ngram"
    tokenizer: Any = ToyTokenizer()

    def __init__(self, seconds: float = 0.0, lanes: int = 1) -> None:
        self.seconds, self.lanes, self.rounds = seconds, lanes, 0
        self.pace = Pace()
        self.gate = threading.Event()
        self.gate.set()
        self.failing: Exception | None = None
        self.failing_prompt = b""
        self.open: list[ToyStream] = []
        self.ended: list[str | None] = []
        self.asked: list[dict[str, Any]] = []
        self.closed = False
        self.listener: Any = None
        self.manifest = SimpleNamespace(limits=SimpleNamespace(context=CONTEXT), engine_id="toy", tuning_id=None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Rounds wait inside the block, and go on after it, also if the test fails there."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    def token_bytes(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        return bytes([token]) if token != EOS or special else b""

    def encode(self, prompt: Any) -> list[int]:
        prompt = prompt.messages if isinstance(prompt, Chat) else prompt
        if not isinstance(prompt, str) and prompt and not isinstance(prompt[0], int):
            prompt = self.tokenizer.render(prompt)
        ids = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
        if not ids or len(ids) >= CONTEXT or not all(0 <= each < 256 for each in ids):
            kind: PromptKind = "token_ids" if not all(0 <= each < 256 for each in ids) else "too_long" if ids else "empty"
            raise PromptError(f"a prompt of {len(ids)} tokens — between 1 and {CONTEXT - 1} bytes are accepted", kind)
        return ids

    def check(self, params: SamplingParams) -> None:
        """Tokens are bytes."""
        for token in (*params.biases, *params.stop_token_ids):
            if token >= 256:
                raise ParameterError(f"{token} is no byte", "logit_bias" if token in params.biases else "stop_token_ids")

    def stream(
        self, prompt: Sequence[int], params: SamplingParams, *, policy: str | None = None, tenant: str | None = None, store: bool = True
    ) -> ToyStream:
        self.asked.append({"prompt": prompt, "params": params, "policy": policy, "tenant": tenant, "store": store})
        end = time.monotonic() + (1e9 if params.deadline is None else params.deadline)
        answer = toy_answer(prompt, params.seed or 0)[: params.max_new_tokens]
        if len(self.open) == self.lanes:
            raise DecoderBusy("every lane has an open Stream — finish one")
        self.open.append(ToyStream(self, answer, prompt, params.stop, params.logprobs, end))
        return self.open[-1]

    @property
    def totals(self) -> Totals:
        from policy import PLAIN, FixedPolicy

        return TotalsRecorder().totals(FixedPolicy(PLAIN))

    def listen(self, listener: Any) -> None:
        self.listener = listener

    def close(self) -> None:
        self.closed = True


def toy_answer(prompt: Sequence[int], seed: int = 0) -> list[int]:
    """Letters and the stop token, cut to the context."""
    state = zlib.crc32(bytes(prompt) + str(seed).encode())
    letters = [97 + (state * (at + 7) >> 5) % 26 for at in range(5 + state % 90)]
    return [*letters, EOS][: CONTEXT - len(prompt)]


def engine_failure() -> EngineFailure:
    return EngineFailure("the scores are not finite — try again", "verify")
