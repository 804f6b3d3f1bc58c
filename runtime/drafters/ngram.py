"""A drafter that needs no training: what followed the same words before, as a tree of several continuations.

The trainless answer for a target without a draft model (prompt look-up decoding, Saxena 2023), made a tree: the longest matching
suffixes come first, among equals the most recent, and continuations that share a beginning share its nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from policy import GrowthPolicy, TreeSpec

from ..decoding.sampling import Scores
from ..decoding.tree import Tree
from .base import Drafter, DrafterParts

LONGEST = 4  # tokens of a suffix that is looked up
SHORTEST = 2  # single tokens match too easily to pay for their rows on a CPU
RECENT = 8  # places remembered per suffix


class NgramDrafter:
    """Indexes every suffix of LONGEST to SHORTEST tokens of prompt and answer by where it was seen."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """Looks at tokens only, so it reads again what the target need not compute again."""
        self._tokens: list[int] = []
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._read(tokens)
        return len(tokens)

    def extend(self, tokens: Sequence[int], scores: Scores, rows: Sequence[int]) -> None:
        self._read(tokens)

    def _read(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._tokens.append(token)
            end = len(self._tokens)
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                places = self._places[tuple(self._tokens[end - size :])]
                places.append(end)
                if len(places) > RECENT:
                    del places[0]

    def lookup(self, root: int, most: int) -> None:
        """Never: all it does is look up."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
        tokens, parent, children = [root], [-1], [0]
        edges: dict[tuple[int, int], int] = {}
        for place in self._matches(root):
            node = 0
            for token in self._tokens[place : place + spec.depth]:
                below = edges.get((node, token))
                if below is None:
                    if len(tokens) == spec.nodes:
                        return Tree.from_parents(tokens, parent)
                    if children[node] == spec.width:
                        break
                    below = edges[node, token] = len(tokens)
                    children[node] += 1
                    tokens.append(token)
                    parent.append(node)
                    children.append(0)
                node = below
        return Tree.from_parents(tokens, parent)

    def _matches(self, root: int) -> Iterator[int]:
        """Positions that followed the current suffix before, the most promising first."""
        for size in range(LONGEST, SHORTEST - 1, -1):
            yield from reversed(self._places.get((*self._tokens[len(self._tokens) - size + 1 :], root), ()))


def make(parts: DrafterParts) -> Drafter:
    """Needs nothing."""
    return NgramDrafter()
