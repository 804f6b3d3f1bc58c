"""A draft model, and what followed the same words before: where the text repeats itself the second needs no drafting and goes further.

Whether to bet on it is decided by `policy.Repeats`; all other rounds are the draft model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from policy import GrowthPolicy, LookupGate, TreeSpec
from policy.lookup import MIN_MATCH

from ..decoding.sampling import Scores
from ..decoding.tree import GrownTree, Tree
from .base import Drafter, DrafterParts

LONGEST = 32  # tokens in common beyond which a match gets no better
RECENT = 16  # places remembered for a pair of tokens


class Index:
    """Prompt and answer so far, by their pairs of neighbours."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            if end >= MIN_MATCH:
                places = self._places[tuple(self.tokens[end - MIN_MATCH :])]
                places.append(end)
                if len(places) > RECENT:
                    del places[0]

    def find(self, root: int) -> tuple[int, int]:
        """(tokens in common, place after them) of the longest earlier match of the text with ``root`` at its end; the latest of equals."""
        known, best = self.tokens, (0, 0)
        for place in reversed(self._places.get((*known[len(known) - MIN_MATCH + 1 :], root), ())):
            matched, most = MIN_MATCH, min(place, LONGEST)
            while matched < most and known[place - 1 - matched] == known[len(known) - matched]:
                matched += 1
            if matched > best[0]:
                best = matched, place
        return best

    def after(self, place: int, root: int, count: int) -> list[int]:
        """``count`` tokens from ``place`` on; where the text ends there, its loop goes on."""
        loop = [*self.tokens[place : place + count], root]
        return [loop[step % len(loop)] for step in range(count)]


class SuffixDrafter:
    """Another drafter with bets on repeated text."""

    def __init__(self, drafter: Drafter, gate: LookupGate) -> None:
        self.drafter, self._gate = drafter, gate
        self.begin()

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """As many tokens need not be told again as the other drafter still knows: these are read here."""
        kept = self.drafter.begin(tokens)
        self._index = Index()
        self._index.extend(tokens[:kept])
        self._lookup: tuple[int, int] | None = None  # tokens in common, guesses: of the round that runs
        self._drafted: tuple[int, int, int, int] | None = None  # nodes, depth, width, length: of the round that runs
        self._gate.begin()
        return kept

    def lookup(self, root: int, most: int) -> Tree | None:
        """A chain of at most ``most`` rows."""
        matched, place = self._index.find(root)
        rows = self._gate.rows(matched, most, len(self._index.tokens))
        if rows == 1:
            return None
        self._lookup = matched, rows - 1
        return Tree.chain([root, *self._index.after(place, root, rows - 1)])

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree | GrownTree:
        tree = self.drafter.draft(root, spec, growth)
        assert isinstance(tree, Tree)  # it works on the host only
        self._drafted = len(tree), int(tree.depth[-1]), spec.width, len(self._index.tokens)
        return tree

    def extend(self, tokens: Sequence[int], scores: Scores, rows: Sequence[int]) -> None:
        if self._lookup:
            self._gate.observe_lookup(*self._lookup, accepted=len(tokens) - 1)
        elif self._drafted:
            self._gate.observe_draft(*self._drafted, tokens=len(tokens))
        self._lookup = self._drafted = None
        self._index.extend(tokens)
        self.drafter.extend(tokens, scores, rows)


def make(parts: DrafterParts) -> Drafter:
    """Around the EAGLE-3 drafter."""
    assert parts.eagle is not None
    return SuffixDrafter(parts.eagle, LookupGate(parts.latency, parts.fixed_tree))
