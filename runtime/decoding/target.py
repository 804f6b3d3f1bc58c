"""The target model: its engine, its cache, and the two things done with it, prefill and verify."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..backends.base import Buffer, Call, Engine, Memory
from ..backends.kv import Cache
from ..manifest.schema import Limits
from .sampling import Scores
from .tree import GrownTree, Tree

ORDER = "order"
"""Name of the buffer that holds 0, 1, 2, ...: slots, rows and beams, wherever all of them are meant."""
GROWN = ("tokens", "parent", "depth", "tree_mask")
SUM_BLOCK = 1024
"""Slots that the CPU's ordered attention adds up in one go. Rows of a tree on both sides of a multiple of it would be added
up in other groups than in plain decoding."""
_VERIFY = {"slots": ORDER, "rows": ORDER}
_VERIFY_GROWN = {**_VERIFY, **{name: f"tree.{name}" for name in GROWN if name != "parent"}}
_PREFILL = {"slots": ORDER}


class Target:
    """Runs trees through the target engine. The cache's length changes in ``prefill`` and ``commit`` only.

    ``grown``: where a tree lies that was drafted on the device, under the names of GROWN.
    """

    def __init__(self, engine: Engine, cache: Cache, limits: Limits, memory: Memory, grown: Mapping[str, Buffer] | None = None) -> None:
        self._engine, self.cache, self.limits, self._memory, self._grown = engine, cache, limits, memory, grown or {}
        self._tokens: list[int] = []  # what was committed
        self._tree = Tree.chain([0])  # what was verified last
        self.cache_valid = True  # whether cache and tokens can be believed: not while a pass runs, nor after one that was interrupted

    @property
    def length(self) -> int:
        """Committed tokens."""
        return self.cache.length

    @property
    def on_host(self) -> bool:
        """Whether it runs where the loop does."""
        return self._memory.on_host

    @property
    def room(self) -> int:
        """Tokens that may still be chosen: the last one needs no slot."""
        return self.limits.context - self.length - 1

    @property
    def most_nodes(self) -> int:
        """Nodes of the largest tree that may be verified now."""
        most = self.limits.tree_nodes
        return min(most, SUM_BLOCK - self.length % SUM_BLOCK) if self.on_host else most

    def common(self, prompt: Sequence[int]) -> Sequence[int]:
        """The beginning of ``prompt`` that an earlier request left in the cache; never all of it, as the last token's scores are needed."""
        if not self.cache_valid or len(self._tokens) != self.length:
            return ()
        return prompt[: min(common_prefix(self._tokens, prompt), len(prompt) - 1)]

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` committed tokens."""
        self.cache.truncate(length)
        del self._tokens[length:]

    def prefill(self, tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], Scores]]:
        """Commit ``tokens`` chunk by chunk. Yields each chunk with its scores: features of all its rows, logits of its last one."""
        step = self.limits.prefill_rows
        del self._tokens[self.length :]
        for start in range(0, len(tokens), step):
            chunk = tokens[start : start + step]
            scores = self._run_chunk(chunk)
            self.cache.commit(range(len(chunk)))
            self._tokens.extend(chunk)
            yield chunk, scores

    def verify(self, tree: Tree | GrownTree) -> Scores:
        """Score every node of ``tree`` in one pass; commits nothing."""
        scores = self._run_grown(tree.nodes) if isinstance(tree, GrownTree) else self._run(tree)
        _ = scores.next_token  # waits for a device, so that its time counts as verifying
        self._tree = scores.tree
        return scores

    def verify_chain(self, tokens: Sequence[int]) -> Scores:
        """Score ``tokens`` one after the other; commits nothing."""
        return self.verify(Tree.chain(tokens))

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows ``path`` of the tree just verified."""
        self.cache.commit(path)
        self._tokens.extend(self._tree.tokens[list(path)].tolist())

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Run a pass of each kind, so that the first request finds every buffer and thread in place: a chunk of the prompt, and trees of
        these ``sizes``, with every span: a device records each, to repeat it at once."""
        for span in self.cache.spans():
            self.cache.truncate(0)
            self.cache.reserve(span)
            self._run_chunk([0] * self.limits.prefill_rows)
            for size in sizes:
                self._run_grown(size) if self._grown and size > 1 else self._run(Tree.chain([0] * size))
        self.cache.truncate(0)

    def _run_chunk(self, chunk: Sequence[int]) -> Scores:
        """One pass over a part of the prompt; the head runs for its last row.

        On a device every chunk is filled up, if there is room: a row costs nothing there, a new shape does. What is too much lies behind
        the committed slots and is overwritten.
        """
        count, room = len(chunk), self.limits.capacity - self.length
        rows = count if self._memory.on_host else min(self.limits.prefill_rows, room)
        past = self._reserved(rows)
        call = self._engine.prepare(_PREFILL, n=rows, span=self.cache.span, r=1)
        call.inputs["rows"][0] = count - 1
        self._fill(call, Tree.chain([*chunk, *[0] * (rows - count)]), past)
        return Scores(call.outputs, Tree.chain(chunk), past, 1)

    def _run(self, tree: Tree) -> Scores:
        """One pass over the tree's rows."""
        count, past = len(tree), self._reserved(len(tree))
        call = self._engine.prepare(_VERIFY, n=count, span=self.cache.span, r=count)
        self._fill(call, tree, past)
        return Scores(call.outputs, tree, past, count)

    def _fill(self, call: Call, tree: Tree, past: int) -> None:
        inputs = call.inputs
        inputs["tokens"][0] = tree.tokens
        inputs["depth"][0] = tree.depth
        inputs["tree_mask"][:] = tree.mask
        inputs["past"][0] = past
        call.run()

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


def common_prefix(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return place
    return min(len(some), len(others))
