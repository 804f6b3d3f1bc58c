"""A Decoder whose model says what a test wants, in the tokens of a family, in blocks of any size."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from runtime import Chunk, DecoderBusy, ParameterError, SamplingParams
from runtime.constraints.grammars import Grammars
from runtime.request import Request
from runtime.text.prompt import encode
from runtime.text.tokenizer import Tokenizer
from tests.support.serve.fakes import ToyDecoder

VOCAB, CONTEXT, STOP = 400, 200_000, 0


class PlantedStream(Iterator[Chunk]):
    """``tokens``, a few a round, with a real request's detokenizer and stop strings."""

    def __init__(self, decoder: PlantedDecoder, prompt: Sequence[int], tokens: Sequence[int], params: SamplingParams) -> None:
        self._decoder, self._tokens, self._random = decoder, list(tokens), random.Random(len(tokens))
        self._request = Request(prompt, params, None, None, frozenset({STOP}))  # type: ignore[arg-type]  # nothing is drawn
        self._request.open(decoder.tokenizer)
        self._over = False

    def __next__(self) -> Chunk:
        if self._request.stop is None and self._tokens and self._request.room:
            size = min(self._random.randint(1, self._decoder.block), self._request.room)
            block, self._tokens = self._tokens[:size], self._tokens[size:]
            return self._request.chunk(tuple(block), None)
        if not self._over:
            self._over = True
            if tail := self._request.end():
                return tail
        raise StopIteration

    @property
    def stats(self) -> Any:
        return self._request.counters.stats()

    @property
    def stop(self) -> str | None:
        return self._request.stop

    def cancel(self) -> None:
        self._request.stop = self._request.stop or "cancelled"

    def __enter__(self) -> PlantedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.open.remove(self)  # type: ignore[arg-type]


class PlantedDecoder(ToyDecoder):
    """``answers``: what the model says, one a request; the last one again and again. ``block``: the most tokens of a round.

    An answer that the request's constraint excludes fails the test: whoever plants it says what the model could say.
    """

    def __init__(self, tokenizer: Tokenizer, *answers: str, block: int = 6) -> None:
        super().__init__()
        self.tokenizer, self.answers, self.block = tokenizer, list(answers), block
        self.prompts: list[str] = []
        self._grammars = Grammars(tokenizer, VOCAB, [STOP])
        self.manifest = SimpleNamespace(limits=SimpleNamespace(context=CONTEXT))

    def token_bytes(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        return self.tokenizer.token_bytes(token, first=first, special=special)  # type: ignore[no-any-return]

    def encode(self, prompt: Any) -> list[int]:
        return encode(prompt, self.tokenizer, VOCAB, CONTEXT)

    def check(self, params: SamplingParams) -> None:
        if params.constraint is not None:
            self._grammars.state(params.constraint)

    def stream(  # type: ignore[override]
        self, prompt: Sequence[int], params: SamplingParams, *, policy: str | None = None, tenant: str | None = None, store: bool = True
    ) -> PlantedStream:
        if self.open:
            raise DecoderBusy("every lane has an open Stream — finish one")
        self.asked.append({"prompt": prompt, "params": params, "policy": policy})
        self.prompts.append(b"".join(self.token_bytes(each, special=True) for each in prompt).decode())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        tokens = self.tokenizer.encode_raw(answer)
        if params.constraint is not None and self._grammars.state(params.constraint).allowed(tokens) != len(tokens):
            raise ParameterError(f"the constraint excludes the planted answer {answer!r}", "constraint")
        stream = PlantedStream(self, prompt, [*tokens, STOP], params)
        self.open.append(stream)  # type: ignore[arg-type]
        return stream
