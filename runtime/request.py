"""One request, from the first pass to the last token: turns rounds into chunks of text and applies the stop conditions. No threading."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from policy import Policy, TreeSpec

from .constraints.state import ConstraintState
from .decoding.drafter import Drafter
from .decoding.logprobs import LogprobRecorder, TokenLogprob
from .decoding.loop import Root, Round, begin, prefill, rounds
from .decoding.sampling import Sampler
from .decoding.stats import RequestCounters
from .decoding.target import Target
from .drafters.past import Past
from .errors import PREFILL
from .sampling_params import SamplingParams
from .text.detokenizer import Detokenizer, StopStrings
from .text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chunk:
    """The result of one verification round. ``accepted``: accepted draft tokens. ``nodes``: verified rows. ``spec``: the requested tree.
    ``logprobs``: one per token, if requested. ``round``: all that the round did, if requested.

    ``spec`` is None for the first token, which comes from prefill, and for a last chunk without tokens: it holds text that was withheld
    because it could have become a stop string or part of a character.
    """

    text: str
    tokens: tuple[int, ...]
    accepted: int
    spec: TreeSpec | None
    nodes: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    round: Round | None = None


@dataclass
class Request:
    """A request and its state. ``sampler``: samples as ``params`` say. ``stop_tokens``: ids that end the answer. ``deadline``: in
    perf_counter's seconds. ``constraint``: the form of the answer, which the sampler moves along. ``past``: the past answers that it may
    look up. ``tenant``: for whom; only what others of the same said is reused. ``counters``: its statistics so far. ``answer``: its tokens
    so far. ``round``: the last one. ``stop``: why it ended (eos, length, stop_string, cancelled or deadline), None while it runs."""

    prompt: Sequence[int]
    params: SamplingParams
    sampler: Sampler
    policy: Policy
    stop_tokens: frozenset[int]
    deadline: float | None = None
    constraint: ConstraintState | None = None
    past: Past | None = None
    tenant: str | None = None
    counters: RequestCounters = field(init=False)
    answer: list[int] = field(default_factory=list, init=False)
    round: Round | None = field(default=None, init=False)
    stop: str | None = None
    cancelled: bool = False
    _logprob_recorder: LogprobRecorder | None = field(default=None, init=False)
    _detokenizer: Detokenizer = field(init=False)
    _stops: StopStrings = field(init=False)
    _max_new_tokens: int = field(init=False)  # the loop also ends when the context is full
    _begun: bool = field(default=False, init=False)  # whether the caches belong to this request

    def __post_init__(self) -> None:
        self.counters = RequestCounters(prompt_tokens=len(self.prompt))
        self._max_new_tokens = sys.maxsize if self.params.max_new_tokens is None else self.params.max_new_tokens
        if self.params.logprobs is not None:
            self.sampler = self._logprob_recorder = LogprobRecorder(self.sampler, self.params.logprobs)

    def run(self, target: Target, drafter: Drafter, tokenizer: Tokenizer) -> Iterator[Chunk]:
        """Decode; yields a Chunk per round. Checks ``cancelled`` and ``deadline`` between passes."""
        for chunk in self._chunks(target, drafter, tokenizer):
            target.cache_valid = True  # between rounds both caches are consistent, and the next request may reuse them
            yield chunk
            target.cache_valid = False
        target.cache_valid = target.cache_valid or self._begun

    def _chunks(self, target: Target, drafter: Drafter, tokenizer: Tokenizer) -> Iterator[Chunk]:
        self.open(tokenizer)
        root = self._prefill(target, drafter)
        if root is not None:
            yield self.chunk((root.token,), None)
            if not self.is_over():
                yield from self._decode(target, drafter, root)
        if tail := self.end():
            yield tail

    def open(self, tokenizer: Tokenizer) -> None:
        """Prepare for the first chunk."""
        shown = {token: text for token, text in tokenizer.hidden.items() if text in self.params.shown}
        self._detokenizer = Detokenizer(tokenizer, self.prompt, shown)
        hidden = {token: text for token, text in tokenizer.hidden.items() if token not in shown} if self.params.stop else {}
        self._stops = StopStrings(self.params.stop, hidden)

    def end(self) -> Chunk | None:
        """The last chunk, with text that was withheld; None if there is none."""
        self.stop = self.stop or "length"
        tail = "" if self.stop == "stop_string" else self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        return Chunk(tail, (), 0, None, logprobs=None if self._logprob_recorder is None else ()) if tail else None

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self._max_new_tokens - self.counters.new_tokens

    def _prefill(self, target: Target, drafter: Drafter) -> Root | None:
        """The first root; None if the request ended before its first token."""
        started, root = perf_counter(), None
        if self.is_over():
            return None
        with PREFILL:
            if target.tenant != self.tenant:
                target.tenant, target.cache_valid = self.tenant, False
            self.counters.cached_prompt_tokens = begin(target, drafter, self.prompt)
            self._begun = True
            steps = prefill(target, drafter, self.sampler, self.prompt)
            while root is None and not self.is_over():
                root = next(steps)
        self.counters.prefill_seconds = perf_counter() - started
        return None if self.is_over() else root

    def _decode(self, target: Target, drafter: Drafter, root: Root) -> Iterator[Chunk]:
        for round_ in rounds(target, drafter, self.policy, self.sampler, root, self.room):
            yield self.chunk(round_.tokens, round_)
            if self.is_over():
                return

    def is_over(self) -> bool:
        """Whether the request has ended; asked between passes. Sets ``stop``."""
        if self.stop is None and self.counters.new_tokens < self._max_new_tokens:
            if self.cancelled:
                self.stop = "cancelled"
            elif self.deadline is not None and perf_counter() >= self.deadline:
                self.stop = "deadline"
        return self.stop is not None

    def chunk(self, tokens: tuple[int, ...], round_: Round | None) -> Chunk:
        """The chunk of a round, cut after the first token that ends the answer; ``round_`` is None for the first token. Counts it."""
        shown, kept = "", 0
        while kept < len(tokens) and not self.stop:
            token = tokens[kept]
            kept += 1
            if token in self.stop_tokens:
                self.stop = "eos"
                break
            piece = self._detokenizer.push(token)
            if token in self._stops.marks:  # bytes before it will not become a character
                piece += self._detokenizer.flush()
            shown += piece if self.counters.new_tokens + kept <= self.params.min_tokens else self._stops.push(piece, token)
            if self._stops.found:
                self.stop = "stop_string"
        self.answer.extend(tokens[:kept])
        logprobs = None if self._logprob_recorder is None else self._logprob_recorder.take()[:kept]
        self.round = round_
        if round_ is None:
            self.counters.new_tokens += kept
            return Chunk(shown, tokens[:kept], 0, None, logprobs=logprobs)
        self.counters.add(round_, kept)
        shared = round_ if self.params.rounds else None
        return Chunk(shown, tokens[:kept], min(kept, len(tokens) - 1), round_.spec, round_.nodes, logprobs, shared)
