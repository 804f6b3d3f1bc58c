"""The target with lanes: passes over trees of several lanes, or over a chunk of one lane's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..backends.lane_cache import LaneCache, LaneRows, LanesEngine, Pages
from ..decoding.sampling import TargetOutput
from ..decoding.tree import Tree


@dataclass(frozen=True)
class LanePass:
    """What a pass gave one lane. ``output``: scores and features of its own rows, valid until the next pass."""

    cache: LaneCache
    tree: Tree
    output: TargetOutput

    def copied(self) -> LanePass:
        """The same, valid after the next pass too."""
        tensors = {name: tensor.copy() for name, tensor in self.output.tensors.items()}
        return replace(self, output=replace(self.output, tensors=tensors))


class LanesTarget:
    """Runs the graph `target_lanes`. Commits nothing: `commit` does, for all lanes at once."""

    def __init__(self, engine: LanesEngine, cache: Pages) -> None:
        self._engine, self.cache = engine, cache
        self.takes_chunks = engine.takes_chunks
        self._min_rows = 1

    def use_one_kernel(self) -> None:
        """Give every pass two rows or more if this processor computes a single row with another kernel, whose sums differ in the last
        bits. A row must have the same bits in any pass. Call it before the first request."""
        lane = LaneCache(self.cache)
        lane.begin(2)
        alone = self.verify([(lane, Tree.chain([0]))])[0].output.logits[0].copy()
        two = self.verify([(lane, Tree.chain([0, 0]))])[0].output.logits[0]
        self._min_rows = 1 if np.array_equal(alone, two) else 2
        lane.free()

    def max_nodes(self, lane: LaneCache) -> int:
        """Nodes of the largest tree that may be verified now: a tree does not lie on two pages, or its rows would be summed in other groups
        than in plain decoding."""
        return self.cache.page_slots - lane.length % self.cache.page_slots

    def verify(self, lanes: Sequence[tuple[LaneCache, Tree]], chunk: tuple[LaneCache, Sequence[int]] | None = None) -> list[LanePass]:
        """Score every node of the lanes' trees in one pass. Raises EngineFailure and OutOfPages.

        ``chunk``: the next tokens of another lane's prompt, which the same pass reads if the graph takes chunks; the result for it is the
        last, with scores of its last token.
        """
        heads = [len(tree) for _, tree in lanes]
        if chunk is None:
            return self._run(lanes, heads)
        return self._run([*lanes, (chunk[0], Tree.chain(chunk[1]))], [*heads, 1], chunk_last=True)

    def read_chunk(self, lane: LaneCache, tokens: Sequence[int]) -> LanePass:
        """A pass over the next ``tokens`` of a prompt alone, with scores of the last. Raises EngineFailure and OutOfPages."""
        return self._run([(lane, Tree.chain(tokens))], [1])[0]

    def _run(self, lanes: Sequence[tuple[LaneCache, Tree]], heads: Sequence[int], chunk_last: bool = False) -> list[LanePass]:
        trees = [tree for _, tree in lanes]
        if sum(map(len, trees)) < self._min_rows:  # the second row lies behind the first and is overwritten
            trees = [Tree.chain([int(trees[0].tokens[0])] * self._min_rows)]
        rows = []
        for (lane, own), tree, head in zip(lanes, trees, heads, strict=True):
            lane.reserve(lane.length + len(tree))
            scored = range(len(own) - head, len(own))
            rows.append(LaneRows(lane, tree.tokens, lane.length + tree.depth, lane.length, lane.length, tree.mask, scored))
        results = []
        for (lane, tree), head, tensors in zip(lanes, heads, self._engine.run(rows, chunk_last=chunk_last), strict=True):
            _ = tensors["next_token"]  # waits for a device, so that its time counts as the pass's
            results.append(LanePass(lane, tree, TargetOutput(tensors, tree, lane.length, head)))
        return results

    def commit(self, paths: Sequence[tuple[LaneCache, Sequence[int]]]) -> None:
        """Commit the rows of each path (ascending, starting with row 0): move them to follow the lane's committed slots."""
        sources, targets = [], []
        for lane, path in paths:
            rows, order = np.asarray(path), np.arange(len(path))
            moved = rows != order
            if moved.any():
                sources.append(lane.slot_numbers(lane.length + rows[moved]))
                targets.append(lane.slot_numbers(lane.length + order[moved]))
        if sources:
            self.cache.copy_slots(np.concatenate(sources), np.concatenate(targets))
        for lane, path in paths:
            lane.length += len(path)
