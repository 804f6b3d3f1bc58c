"""The target model: its engine, its cache, and the two things done with it, prefill and verify."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .engine import Buffer, Engine, Memory
from .kv import Cache
from .manifest import Limits
from .sampling import Scores
from .tree import GrownTree, Tree

ORDER = "order"
"""Name of the buffer that holds 0, 1, 2, ...: slots, rows and beams, wherever all of them are meant."""
GROWN = ("tokens", "parent", "depth", "tree_mask")
_VERIFY = {"slots": ORDER, "rows": ORDER}
_VERIFY_GROWN = {**_VERIFY, **{name: f"tree.{name}" for name in GROWN if name != "parent"}}
_PREFILL = {"slots": ORDER}


class Target:
    """Runs trees through the target engine. The cache's length changes in ``prefill`` and ``commit`` only.

    ``grown``: where a tree lies that was drafted on the device, under the names of GROWN.
    """

    def __init__(self, engine: Engine, cache: Cache, limits: Limits, memory: Memory, grown: Mapping[str, Buffer] | None = None) -> None:
        self._engine, self.cache, self.limits, self._memory, self._grown = engine, cache, limits, memory, grown or {}

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

    def verify(self, tree: Tree | GrownTree) -> Scores:
        """Score every node of ``tree`` in one pass; commits nothing."""
        scores = self._run_grown(tree.nodes) if isinstance(tree, GrownTree) else self._run(tree, head_rows=len(tree))
        _ = scores.next_token  # waits for a device, so that its time counts as verifying
        return scores

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows ``path`` of the tree just verified."""
        self.cache.commit(path)

    def warm_up(self, sizes: Sequence[int], spans: Sequence[int]) -> None:
        """Run a pass of each kind, so that the first request finds every buffer and thread in place: a chunk of the prompt, and trees of
        these ``sizes``. For each of ``spans`` twice: a device records the second run, to repeat it at once."""
        for span in spans:
            self.cache.reserve(span)
            for _ in range(2 if not self._memory.on_host else 1):
                self._run(Tree.chain([0] * self.limits.prefill_rows), head_rows=1)
                for size in sizes:
                    self._run_grown(size) if self._grown else self._run(Tree.chain([0] * size), head_rows=size)
        self.cache.truncate(0)

    def _run(self, tree: Tree, head_rows: int) -> Scores:
        """One pass over the tree's rows; the head runs for the last ``head_rows`` of them."""
        count, past = len(tree), self._reserved(len(tree))
        names = _VERIFY if head_rows == count else _PREFILL
        call = self._engine.prepare(names, n=count, span=self.cache.span, r=head_rows)
        inputs = call.inputs
        inputs["tokens"][0] = tree.tokens
        inputs["depth"][0] = tree.depth
        inputs["tree_mask"][:] = tree.mask
        inputs["past"][0] = past
        if names is _PREFILL:
            inputs["rows"][0] = count - 1
        call.run()
        return Scores(call.outputs, tree, past, head_rows)

    def _run_grown(self, count: int) -> Scores:
        """One pass over the tree that lies in the device's memory."""
        past = self._reserved(count)
        call = self._engine.prepare(_VERIFY_GROWN, n=count, span=self.cache.span, r=count)
        call.inputs["past"][0] = past
        call.run()
        shapes = {"tree_mask": (count, count)}
        tree = Tree(*(self._memory.read(self._grown[name], shapes.get(name, (count,))).copy() for name in GROWN))
        return Scores(call.outputs, tree, past, count)

    def _reserved(self, count: int) -> int:
        """Committed slots, once there is room for ``count`` rows after them."""
        past = self.length
        if past + count > self.cache.span:
            self.cache.reserve(self.cache.fitting(past + count))
        return past
