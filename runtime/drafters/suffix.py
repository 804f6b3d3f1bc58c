"""A draft model combined with suffix lookup: repeated text is copied from its earlier occurrence, which needs no drafting and goes deeper.
It is looked for in the request's own text and in past answers.

`policy.LookupGate` decides which rounds use a lookup. All other rounds use the draft model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from policy import GrowthPolicy, LookupGate, TreeSpec
from policy.lookup import MIN_MATCH

from ..decoding.drafter import Drafter
from ..decoding.sampling import TargetOutput
from ..decoding.tree import DeviceTree, Tree
from .base import DrafterParts
from .past import MAX_MATCH, Past

MAX_POSITIONS = 16  # remembered per MIN_MATCH-gram


class SuffixIndex:
    """Indexes prompt and answer by their MIN_MATCH-grams, to find the longest earlier match of the text's end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._positions: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append ``tokens`` to the text."""
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            if end >= MIN_MATCH:
                positions = self._positions[tuple(self.tokens[end - MIN_MATCH :])]
                positions.append(end)
                if len(positions) > MAX_POSITIONS:
                    del positions[0]

    def find(self, root: int) -> tuple[int, int]:
        """The longest earlier match of the text's end with ``root`` appended, the latest among equals: (its length in tokens, the position
        after it); (0, 0) if there is none."""
        text, best = self.tokens, (0, 0)
        for position in reversed(self._positions.get((*text[len(text) - MIN_MATCH + 1 :], root), ())):
            matched, longest = MIN_MATCH, min(position, MAX_MATCH)
            while matched < longest and text[position - 1 - matched] == text[len(text) - matched]:
                matched += 1
            if matched > best[0]:
                best = matched, position
        return best

    def continuation(self, position: int, root: int, count: int) -> list[int]:
        """``count`` tokens from ``position`` on. Beyond the end of the text the tokens repeat, as the match then overlaps its own copy."""
        loop = [*self.tokens[position : position + count], root]
        return [loop[step % len(loop)] for step in range(count)]


class SuffixDrafter:
    """Adds lookups to another drafter. ``past``: the past answers that the request may look up; set before it begins."""

    def __init__(self, drafter: Drafter, gate: LookupGate) -> None:
        self.drafter, self._gate = drafter, gate
        self.past: Past | None = None
        self.begin()

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """Keeps as many tokens as the inner drafter keeps, and indexes them itself."""
        kept = self.drafter.begin(tokens)
        self._index = SuffixIndex()
        self._index.extend(tokens[:kept])
        self._lookup: tuple[int, int, bool] | None = None  # of the current round: length of the match, proposed tokens, from the past
        self._draft: tuple[int, int, int, int] | None = None  # of the current round: nodes, depth, width, length
        self._gate.begin()
        return kept

    def lookup(self, root: int, max_rows: int) -> Tree | None:
        """A chain of at most ``max_rows`` rows, or None."""
        text = self._index.tokens
        matched, position = self._index.find(root)
        if self.past is not None:
            longer, following = self.past.find(text, root, min(max_rows, max(self._gate.sizes, default=1)) - 1)
            if longer > matched and (rows := self._gate.rows(longer, min(max_rows, 1 + len(following)), len(text), past=True)) > 1:
                self._lookup = longer, rows - 1, True
                return Tree.chain([root, *following[: rows - 1]], "lookup")
        if (rows := self._gate.rows(matched, max_rows, len(text))) == 1:
            return None
        self._lookup = matched, rows - 1, False
        return Tree.chain([root, *self._index.continuation(position, root, rows - 1)], "lookup")

    @property
    def probabilities(self) -> list[float]:
        """For each token of this round's lookup, the probability that it and all before it are accepted; empty without a lookup."""
        return self._gate.probabilities(*self._lookup) if self._lookup else []

    def shorten(self, rows: int) -> None:
        """Only the first ``rows`` rows of this round's lookup are verified."""
        self._lookup = (self._lookup[0], rows - 1, self._lookup[2]) if self._lookup and rows > 1 else None

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree | DeviceTree:
        tree = self.drafter.draft(root, spec, growth)
        if isinstance(tree, Tree):
            self.drafted(tree, spec.width)
        else:  # the host does not see a tree on a device before it is verified
            self._draft = tree.nodes, spec.depth, spec.width, len(self._index.tokens)
        return tree

    def drafted(self, tree: Tree, width: int) -> None:
        """This round verifies a drafted tree; its levels had ``width`` beams."""
        self._draft = len(tree), int(tree.depth[-1]), width, len(self._index.tokens)

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        if self._lookup:
            matched, proposed, past = self._lookup
            self._gate.observe_lookup(matched, proposed, len(tokens) - 1, past)
        elif self._draft:
            self._gate.observe_draft(*self._draft, tokens=len(tokens))
        self._lookup = self._draft = None
        self._index.extend(tokens)
        self.drafter.extend(tokens, output, rows)


def make(parts: DrafterParts) -> Drafter:
    """The drafter "eagle+ngram"."""
    assert parts.model_drafter is not None
    return SuffixDrafter(parts.model_drafter, parts.gate())
