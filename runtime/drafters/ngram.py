"""Prompt lookup decoding (Saxena 2023) with trees: proposes what followed the same n-gram earlier. It needs no draft model.

The longest matching n-grams come first, among equals the most recent. Continuations with a common prefix share its nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from policy import GrowthPolicy, TreeSpec

from ..decoding.drafter import Drafter
from ..decoding.sampling import TargetOutput
from ..decoding.tree import Tree
from .base import DrafterParts
from .past import Past

MAX_NGRAM = 4
MIN_NGRAM = 2  # single tokens match too often to pay for their rows on a CPU
MAX_POSITIONS = 8  # remembered per n-gram


class NgramDrafter:
    """Indexes every n-gram of MIN_NGRAM to MAX_NGRAM tokens in prompt and answer by the positions after it. ``past``: the past answers that
    the request may look up; what they say comes before matches that are not longer."""

    def __init__(self) -> None:
        self.past: Past | None = None
        self.begin()

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """Needs no features, so it indexes all of ``tokens`` itself and keeps them all."""
        self._tokens: list[int] = []
        self._positions: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._index(tokens)
        return len(tokens)

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        self._index(tokens)

    def _index(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._tokens.append(token)
            end = len(self._tokens)
            for size in range(MIN_NGRAM, min(MAX_NGRAM, end) + 1):
                positions = self._positions[tuple(self._tokens[end - size :])]
                positions.append(end)
                if len(positions) > MAX_POSITIONS:
                    del positions[0]

    def lookup(self, root: int, max_rows: int) -> None:
        """Never proposes anything: `draft` does all lookups, within the policy's tree."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
        tokens, parent, children = [root], [-1], [0]
        edges: dict[tuple[int, int], int] = {}
        for following in self._continuations(root, spec.depth):
            node = 0
            for token in following:
                below = edges.get((node, token))
                if below is None:
                    if len(tokens) == spec.nodes:
                        return Tree.from_parents(tokens, parent, "lookup")
                    if children[node] == spec.width:
                        break
                    below = edges[node, token] = len(tokens)
                    children[node] += 1
                    tokens.append(token)
                    parent.append(node)
                    children.append(0)
                node = below
        return Tree.from_parents(tokens, parent, "lookup")

    def _continuations(self, root: int, depth: int) -> Iterator[Sequence[int]]:
        """At most ``depth`` tokens each: the likeliest continuation first."""
        if self.past is not None:
            yield self.past.find(self._tokens, root, depth)[1]  # a past match is not shorter than MAX_NGRAM
        for position in self._matches(root):
            yield self._tokens[position : position + depth]

    def _matches(self, root: int) -> Iterator[int]:
        """Positions after earlier occurrences of the current n-gram: longest n-gram first, then most recent."""
        for size in range(MAX_NGRAM, MIN_NGRAM - 1, -1):
            yield from reversed(self._positions.get((*self._tokens[len(self._tokens) - size + 1 :], root), ()))


def make(parts: DrafterParts) -> Drafter:
    """The drafter "ngram"."""
    return NgramDrafter()
