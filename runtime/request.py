"""One request from first pass to last token: rounds in, text out. Knows nothing of threads or of who reads it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from policy import Policy, TreeSpec

from .decoding.logprobs import LogprobRecorder, TokenLogprob
from .decoding.loop import Root, begin, prefill, rounds
from .decoding.sampling import Pick
from .decoding.stats import Tally
from .decoding.target import Target
from .drafters.base import Drafter
from .errors import PREFILL
from .sampling_params import SamplingParams
from .text.detokenizer import Detokenizer, StopStrings
from .text.tokenizer import Text


@dataclass(frozen=True)
class Chunk:
    """What one verification round brought. ``accepted`` counts draft tokens, ``nodes`` the rows that were verified, ``spec`` is the tree
    that was asked for. ``logprobs``: one per token, if they were asked for.

    ``spec`` is None for the first token, which prefill brings, and for a closing chunk without tokens: text that was held back in case it
    became a stop string or a whole character.
    """

    text: str
    tokens: tuple[int, ...]
    accepted: int
    spec: TreeSpec | None
    nodes: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass
class Request:
    """A prompt, what is asked of it, and what has come of it so far. ``pick`` samples as ``params`` say; ``stop_tokens``: ids that end the
    answer; ``deadline``: by perf_counter. ``stop`` says why it ended: eos, length, stop_string, cancelled or deadline."""

    prompt: Sequence[int]
    params: SamplingParams
    pick: Pick
    policy: Policy
    stop_tokens: frozenset[int]
    deadline: float | None = None
    tally: Tally = field(init=False)
    stop: str | None = None
    cancelled: bool = False
    _logprob_recorder: LogprobRecorder | None = field(default=None, init=False)
    _stops: StopStrings = field(init=False)
    _max_new_tokens: int = field(init=False)  # the loop ends where the context does
    _begun: bool = field(default=False, init=False)  # the caches are this request's

    def __post_init__(self) -> None:
        self.tally = Tally(prompt_tokens=len(self.prompt))
        self._stops = StopStrings(tuple(self.params.stop))
        self._max_new_tokens = sys.maxsize if self.params.max_new_tokens is None else self.params.max_new_tokens
        if self.params.logprobs is not None:
            self.pick = self._logprob_recorder = LogprobRecorder(self.pick, self.params.logprobs)

    def run(self, target: Target, drafter: Drafter, text: Text) -> Iterator[Chunk]:
        """Decode; yields a Chunk per round. ``cancelled`` and ``deadline`` are honoured between passes."""
        for chunk in self._answered(target, drafter, text):
            target.cache_valid = True  # between rounds both caches are whole, so the next request may begin with what they hold
            yield chunk
            target.cache_valid = False
        target.cache_valid = target.cache_valid or self._begun

    def _answered(self, target: Target, drafter: Drafter, text: Text) -> Iterator[Chunk]:
        root = self._prefilled(target, drafter)
        detokenizer = Detokenizer(text)
        if root is not None:
            self.tally.new_tokens = 1
            yield self._chunk(detokenizer, (root.token,), None)
            if not self._is_over():
                yield from self._decode(target, drafter, detokenizer, root)
        self.stop = self.stop or "length"
        tail = "" if self.stop == "stop_string" else self._stops.push(detokenizer.flush()) + self._stops.flush()
        if tail:
            yield Chunk(tail, (), 0, None, logprobs=None if self._logprob_recorder is None else ())

    def _prefilled(self, target: Target, drafter: Drafter) -> Root | None:
        """None when the request was over before its first token."""
        started, root = perf_counter(), None
        if self._is_over():
            return None
        with PREFILL:
            self.tally.cached_prompt_tokens = begin(target, drafter, self.prompt)
            self._begun = True
            steps = prefill(target, drafter, self.pick, self.prompt)
            while root is None and not self._is_over():
                root = next(steps)
        self.tally.prefill_seconds = perf_counter() - started
        return None if self._is_over() else root

    def _decode(self, target: Target, drafter: Drafter, detokenizer: Detokenizer, root: Root) -> Iterator[Chunk]:
        for round_ in rounds(target, drafter, self.policy, self.pick, root, self._max_new_tokens - 1):
            chunk = self._chunk(detokenizer, round_.tokens, round_.spec, round_.nodes)
            self.tally.add(round_, len(chunk.tokens))
            yield chunk
            if self._is_over():
                return

    def _is_over(self) -> bool:
        if self.stop is None and self.tally.new_tokens < self._max_new_tokens:
            if self.cancelled:
                self.stop = "cancelled"
            elif self.deadline is not None and perf_counter() >= self.deadline:
                self.stop = "deadline"
        return self.stop is not None

    def _chunk(self, detokenizer: Detokenizer, tokens: tuple[int, ...], spec: TreeSpec | None, nodes: int = 0) -> Chunk:
        """Text of a round, cut after the first token that ends the answer."""
        shown, kept = "", 0
        while kept < len(tokens) and not self.stop:
            token = tokens[kept]
            kept += 1
            if token in self.stop_tokens:
                self.stop = "eos"
                break
            shown += self._stops.push(detokenizer.push(token))
            if self._stops.found:
                self.stop = "stop_string"
        logprobs = None if self._logprob_recorder is None else self._logprob_recorder.taken()[:kept]
        return Chunk(shown, tokens[:kept], min(kept, len(tokens) - 1), spec, nodes, logprobs)
