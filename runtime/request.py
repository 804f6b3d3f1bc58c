"""One request from first pass to last token: rounds in, text out. Knows nothing of threads or of who reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

from policy import Policy, TreeSpec

from .drafter import Drafter
from .loop import Root, prefill, rounds
from .sampling import Pick
from .stats import Tally
from .target import Target
from .text import Detokenizer, StopStrings, Text


@dataclass(frozen=True)
class Chunk:
    """What one verification round brought. ``accepted`` counts draft tokens.

    ``spec`` is None for the first token, which prefill brings, and for a closing chunk without tokens: text that was held back in case it
    became a stop string or a whole character.
    """

    text: str
    tokens: tuple[int, ...]
    accepted: int
    spec: TreeSpec | None


@dataclass
class Request:
    """A prompt, its limits, and what has come of it so far. ``stop`` says why it ended: eos, length, stop_string, cancelled."""

    prompt: Sequence[int]
    max_new_tokens: int
    pick: Pick
    policy: Policy
    stops: StopStrings
    stop_tokens: frozenset[int]
    tally: Tally = field(init=False)
    stop: str | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.tally = Tally(prompt_tokens=len(self.prompt))

    def run(self, target: Target, drafter: Drafter, text: Text) -> Iterator[Chunk]:
        """Decode; yields a Chunk per round. ``cancelled`` is honoured between passes."""
        target.cache.truncate(0)
        started, root = perf_counter(), None
        for step in prefill(target, drafter, self.pick, self.prompt):
            root = step
            if self.cancelled:
                break
        self.tally.prefill_seconds = perf_counter() - started
        detokenizer = Detokenizer(text)
        if root is not None and not self.cancelled:
            self.tally.new_tokens = 1
            yield self._chunk(detokenizer, (root.token,), None)
            yield from self._decode(target, drafter, detokenizer, root)
        self.stop = self.stop or ("cancelled" if self.cancelled else "length")
        tail = "" if self.stop == "stop_string" else self.stops.push(detokenizer.flush()) + self.stops.flush()
        if tail:
            yield Chunk(tail, (), 0, None)

    def _decode(self, target: Target, drafter: Drafter, detokenizer: Detokenizer, root: Root) -> Iterator[Chunk]:
        if self.stop or self.cancelled:
            return
        read = partial(detokenizer.after, self.prompt)
        for round_ in rounds(target, drafter, self.policy, self.pick, root, self.max_new_tokens - 1, read):
            chunk = self._chunk(detokenizer, round_.tokens, round_.spec)
            self.tally.add(round_, len(chunk.tokens))
            yield chunk
            if self.stop or self.cancelled:
                return

    def _chunk(self, detokenizer: Detokenizer, tokens: tuple[int, ...], spec: TreeSpec | None) -> Chunk:
        """Text of a round, cut after the first token that ends the answer."""
        shown, kept = "", 0
        while kept < len(tokens) and not self.stop:
            token = tokens[kept]
            kept += 1
            if token in self.stop_tokens:
                self.stop = "eos"
                break
            shown += self.stops.push(detokenizer.push(token))
            if self.stops.found:
                self.stop = "stop_string"
        return Chunk(shown, tokens[:kept], min(kept, len(tokens) - 1), spec)
