"""The target model: its engine and its cache, with the two operations of the loop, prefill and verify."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..backends.base import Buffer, Cache, Call, Engine, Memory
from ..manifest.graphs import SUM_BLOCK
from ..manifest.schema import Limits
from .sampling import TargetOutput
from .tree import DeviceTree, Tree

ARANGE = "arange"
"""Name of the buffer that holds 0, 1, 2, ..., bound to index inputs (slots, rows, beams) that select everything."""
TREE_TENSORS = ("tokens", "parent", "depth", "tree_mask")
"""Outputs of the tree graph, in the order of Tree's fields."""
# Graph input -> the buffer it is bound to, where the names differ.
_VERIFY = {"slots": ARANGE, "rows": ARANGE}
_VERIFY_DEVICE_TREE = {**_VERIFY, **{name: f"tree.{name}" for name in TREE_TENSORS if name != "parent"}}
_PREFILL = {"slots": ARANGE}


class Target:
    """Runs trees through the target engine. Only ``prefill`` and ``commit`` extend the cache.

    ``device_tree``: the buffers of a tree that was drafted on the device, by the names of TREE_TENSORS. ``cache_valid``: whether the cache
    and the list of committed tokens agree; the caller sets it to False while a pass runs, so it stays False if the pass is interrupted.
    """

    def __init__(
        self, engine: Engine, cache: Cache, limits: Limits, memory: Memory, device_tree: Mapping[str, Buffer] | None = None
    ) -> None:
        self._engine, self.cache, self.limits, self._memory, self._device_tree = engine, cache, limits, memory, device_tree or {}
        self._committed: list[int] = []
        self._verified_tree = Tree.chain([0])
        self.cache_valid = True
        self.tenant: str | None = None  # whose text the cache has
        self._min_rows = 1

    @property
    def length(self) -> int:
        """Committed tokens."""
        return self.cache.length

    @property
    def on_host(self) -> bool:
        """Whether the engine runs in host memory."""
        return self._memory.on_host

    @property
    def room(self) -> int:
        """Tokens that may still be generated. The last one needs no slot."""
        return self.limits.context - self.length - 1

    @property
    def max_nodes(self) -> int:
        """Nodes of the largest tree that may be verified now."""
        nodes = self.limits.tree_nodes
        return min(nodes, SUM_BLOCK - self.length % SUM_BLOCK) if self.on_host else nodes

    def cached_prefix(self, prompt: Sequence[int]) -> Sequence[int]:
        """The prefix of ``prompt`` that the cache holds. Never all of ``prompt``, because the last token's logits are needed."""
        if not self.cache_valid or len(self._committed) != self.length:
            return ()
        return prompt[: min(common_prefix_length(self._committed, prompt), len(prompt) - 1)]

    def truncate(self, length: int) -> None:
        """Keep only the first ``length`` committed tokens."""
        self.cache.truncate(length)
        del self._committed[length:]

    def prefill(self, tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], TargetOutput]]:
        """Commit ``tokens`` chunk by chunk. Yields each chunk with its output: features of all its rows, logits of its last row."""
        step = self.limits.prefill_rows
        del self._committed[self.length :]
        for start in range(0, len(tokens), step):
            chunk = tokens[start : start + step]
            output = self._run_chunk(chunk)
            self.cache.commit(range(len(chunk)))
            self._committed.extend(chunk)
            yield chunk, output

    def verify(self, tree: Tree | DeviceTree) -> TargetOutput:
        """Score every node of ``tree`` in one pass. Commits nothing."""
        output = self._run_device_tree(tree.nodes) if isinstance(tree, DeviceTree) else self._run(tree)
        _ = output.next_token  # waits for a device, so that its time counts as verifying
        self._verified_tree = output.tree
        return output

    def verify_chain(self, tokens: Sequence[int]) -> TargetOutput:
        """Score ``tokens`` as a chain, each the child of the one before. Commits nothing."""
        return self.verify(Tree.chain(tokens))

    def commit(self, path: Sequence[int]) -> None:
        """Commit the rows ``path`` of the tree that was verified last."""
        self.cache.commit(path)
        self._committed.extend(self._verified_tree.tokens[list(path)].tolist())

    def warm_up(self, sizes: Sequence[int], chains: bool = False) -> None:
        """Run a prefill pass and a tree pass of each of ``sizes`` at every span, so that the first request finds all buffers and threads
        ready. On a device this also records every CUDA graph. ``chains``: whether trees come from the host, too, where others are drafted
        on a device."""
        for span in self.cache.spans():
            self.cache.truncate(0)
            self.cache.reserve(span)
            self._run_chunk([0] * self.limits.prefill_rows)
            for size in sizes:
                on_device = bool(self._device_tree) and size > 1
                if on_device:
                    self._run_device_tree(size)
                if chains or not on_device:
                    self._run(Tree.chain([0] * size))
        self.cache.truncate(0)

    def use_one_kernel(self) -> None:
        """Give every pass two rows or more if this processor computes one row with another kernel, whose sums differ in the last bits.

        ONNX Runtime's int4 products do so on processors without AVX-512. In quantized engines a row must have the same bits in any pass:
        there the last bits decide how activations are rounded. Call it before the first request.
        """
        alone = self._run(Tree.chain([0])).logits[0].copy()
        if not np.array_equal(alone, self._run(Tree.chain([0, 0])).logits[0]):
            self._min_rows = 2
        self.cache.truncate(0)

    def _run_chunk(self, chunk: Sequence[int]) -> TargetOutput:
        """One pass over a chunk of the prompt, with logits for its last row.

        On a device every chunk is padded to full size while the cache has room: extra rows cost nothing there, a new shape does. The
        padding lies after the committed slots and is overwritten.
        """
        count, room = len(chunk), self.limits.capacity - self.length
        rows = max(count, self._min_rows) if self._memory.on_host else min(self.limits.prefill_rows, room)
        past = self._reserve(rows)
        call = self._engine.prepare(_PREFILL, n=rows, span=self.cache.span, r=1)
        call.inputs["rows"][0] = count - 1
        self._run_call(call, Tree.chain([*chunk, *[0] * (rows - count)]), past)
        return TargetOutput(call.outputs, Tree.chain(chunk), past, 1)

    def _run(self, tree: Tree) -> TargetOutput:
        """One pass over a tree in host memory. The row that pads a single root lies after it and is overwritten."""
        count, rows = len(tree), max(len(tree), self._min_rows)
        past = self._reserve(rows)
        call = self._engine.prepare(_VERIFY, n=rows, span=self.cache.span, r=count)
        self._run_call(call, tree if rows == count else Tree.chain([int(tree.tokens[0])] * rows), past)
        return TargetOutput(call.outputs, tree, past, count)

    def _run_call(self, call: Call, tree: Tree, past: int) -> None:
        inputs = call.inputs
        inputs["tokens"][0] = tree.tokens
        inputs["depth"][0] = tree.depth
        inputs["tree_mask"][:] = tree.mask
        inputs["past"][0] = past
        call.run()

    def _run_device_tree(self, count: int) -> TargetOutput:
        """One pass over the tree of ``count`` nodes in device memory."""
        past = self._reserve(count)
        call = self._engine.prepare(_VERIFY_DEVICE_TREE, n=count, span=self.cache.span, r=count)
        call.inputs["past"][0] = past
        call.run()
        shapes = {"tree_mask": (count, count)}
        tokens, parent, depth, mask = (
            self._memory.read(self._device_tree[name], shapes.get(name, (count,))).copy() for name in TREE_TENSORS
        )
        tree = Tree(tokens, parent, depth, mask)
        return TargetOutput(call.outputs, tree, past, count)

    def _reserve(self, count: int) -> int:
        """Make room for ``count`` rows after the committed slots. Returns the number of committed slots."""
        past = self.length
        if past + count > self.cache.span:
            self.cache.reserve(self.cache.span_for(past + count))
        return past


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens ``first`` and ``second`` have in common at their start."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
