"""The target model: its engine, its cache, and the two things done with it, prefill and verify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .engine import Engine
from .kv import KVCache
from .manifest import Limits
from .sampling import Scores
from .tree import Tree


class Target:
    """Runs trees through the target engine. The cache's length changes in ``prefill`` and ``commit`` only."""

    def __init__(self, engine: Engine, cache: KVCache, limits: Limits) -> None:
        self._engine, self.cache, self.limits = engine, cache, limits
        self._order = np.arange(limits.capacity)
        # A smaller call sees the front of the same buffer, so its slots are right as well.
        engine.prepare(n=1, span=limits.capacity, r=1).inputs["slots"][:] = self._order

    @property
    def length(self) -> int:
        """Committed tokens."""
        return self.cache.length

    @property
    def room(self) -> int:
        """Tokens that may still be chosen: the last one needs no slot."""
        return self.limits.context - self.length - 1

    def prefill(self, tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], Scores]]:
        """Commit ``tokens`` chunk by chunk. Yields each chunk with its scores: features of all its rows, logits of its last one."""
        step = self.limits.prefill_rows
        for start in range(0, len(tokens), step):
            chunk = tokens[start : start + step]
            scores = self._run(Tree.chain(chunk), head_rows=1)
            self.cache.commit(range(len(chunk)))
            yield chunk, scores

    def verify(self, tree: Tree) -> Scores:
        """Score every node of ``tree`` in one pass; commits nothing."""
        return self._run(tree, head_rows=len(tree))

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows ``path`` of the tree just verified."""
        self.cache.commit(path)

    def warm_up(self) -> None:
        """Run one pass of each kind, so that the first request finds every buffer and thread in place."""
        for count in (1, 2, self.limits.prefill_rows):
            self._run(Tree.chain([0] * count), head_rows=1)
        self.cache.truncate(0)

    def _run(self, tree: Tree, head_rows: int) -> Scores:
        """One pass over the tree's rows; the head runs for the last ``head_rows`` of them."""
        count, past = len(tree), self.length
        if past + count > self.cache.span:
            self.cache.reserve(self._span_for(past + count))
        call = self._engine.prepare(n=count, span=self.cache.span, r=head_rows)
        inputs = call.inputs
        inputs["tokens"][0] = tree.tokens
        inputs["depth"][0] = tree.depth
        inputs["tree_mask"][:] = tree.mask
        inputs["past"][0] = past
        inputs["rows"][:] = self._order[count - head_rows : count]
        call.run()
        outputs = call.outputs
        return Scores(outputs["next_token"][0], outputs["logits"][0], outputs["features"][0])

    def _span_for(self, slots: int) -> int:
        """Steps grow with the length, so that laying the cache out anew stays a small share of the work."""
        step = self.limits.span_step * max(1, slots // (8 * self.limits.span_step))
        return min(-(-slots // step) * step, self.limits.capacity)
