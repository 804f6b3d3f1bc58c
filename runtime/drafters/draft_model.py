"""What all drafters with a draft model share: the target's features of committed tokens enter the draft's cache once, and wait until then.

Rows of a pass that are not committed lie behind the committed ones in the cache and are overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from policy import GrowthPolicy, TreeSpec

from ..backends.base import Buffer, Cache, Engine, Memory
from ..decoding.sampling import TargetOutput
from ..decoding.target import common_prefix_length
from ..decoding.tree import DeviceTree, Tree
from ..manifest.schema import Draft, Limits

_FUSE = {"hidden": "fused"}  # graph output -> the buffer it is bound to


def max_draft_rows(limits: Limits, draft: Draft) -> int:
    """Rows of the largest draft pass: a chunk of the prompt, a level of a tree, or a path through one with its root."""
    return max(limits.prefill_rows, draft.max_width, draft.max_depth + 1)


class ModelDrafter:
    """Drafts with a model. Trees wider or deeper than the engine allows are clipped. ``buffers``: "fused", "waiting" and "log_probs" among
    others."""

    def __init__(self, fuse: Engine, cache: Cache, draft: Draft, limits: Limits, memory: Memory, buffers: Mapping[str, Buffer]) -> None:
        self._fuse_engine, self._cache, self._draft, self._memory, self._buffers = fuse, cache, draft, memory, buffers
        self._limits = limits
        self._max_rows, self._feature_rows = max_draft_rows(limits, draft), max(limits.tree_nodes, limits.prefill_rows)
        self._row_sizes = [*(1 << power for power in range((self._max_rows - 1).bit_length())), self._max_rows]
        self._committed: list[int] = []
        self._waiting: list[int] = []  # the last committed tokens, which are not in the cache yet
        self._cache_valid = True  # False while the cache changes, after an interruption, and after NaN
        self.begin()

    def warm_up(self, specs: Sequence[TreeSpec]) -> None:
        """Draft trees of ``specs``, so that the first request finds all buffers and threads ready. On a device, at every span and after
        every number of catch-up rows, because each of them records a CUDA graph."""
        for span in self._cache.spans():
            for count in [1] if self._memory.on_host else self._row_sizes:
                for spec in (*specs, None):
                    self.begin()
                    self._cache.reserve(span)
                    self._fuse([0] * count, [0] * count)
                    self.draft(0, spec) if spec else self._catch_up(0, width=1)
        self.begin()

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """Start a request. An n-token common prefix keeps n - 1 slots, because a slot holds a token's features and the token after it. The
        target must recompute the features of the rest: they are gone once they are in the cache."""
        common = common_prefix_length(self._committed, tokens) if self._cache_valid else 0
        kept = max(0, min(self._cache.length, common - 1))
        self._cache_valid = False
        self._cache.truncate(kept)
        self._committed, self._waiting = list(tokens[:kept]), []
        self._cache_valid = True
        return kept

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        """Fuse the features of committed tokens. ``output`` is not read: its features are in a buffer that the fuse graph shares."""
        valid, self._cache_valid = self._cache_valid, False
        for start in range(0, len(tokens), self._max_rows):  # copied and forced tokens may be more than a draft's path
            part = slice(start, start + self._max_rows)
            self._fuse(tokens[part], rows[part])
        self._committed.extend(tokens)
        self._cache_valid = valid

    def _fuse(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Append fused features of committed tokens to the waiting rows; each waits for the token after it."""
        if len(self._waiting) + len(tokens) > self._max_rows:
            self._catch_up(tokens[0], width=1)  # the smallest width, as nothing is drafted from it
        count, size = len(tokens), self._draft.hidden
        call = self._fuse_engine.prepare(_FUSE, n=self._feature_rows, m=self._padded_rows(count, self._max_rows))
        call.inputs["rows"][:count] = rows
        call.run()
        self._memory.copy(self._buffers["fused"], self._buffers["waiting"], len(self._waiting) * size, count * size)
        self._waiting.extend(tokens)

    def lookup(self, root: int, max_rows: int) -> None:
        """Never proposes anything."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree | DeviceTree:
        spec = self._clip(spec)
        if spec.nodes == 1:  # also for a spec without depth or width
            return Tree.chain([root])
        valid, self._cache_valid = self._cache_valid, False
        tree = self._draft_tree(root, spec, growth)
        # NaN scores only make a bad tree, but the NaN that caused them may be in the cache.
        self._cache_valid = valid and (not self._memory.on_host or not math.isnan(np.add.reduce(self._buffers["log_probs"][: spec.width])))
        return tree

    def pool(self, root: int, depth: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All candidates of a tree of this depth and width, before the selection of nodes: summed log-probabilities, tokens and the entries
        of parents, each [p]. Entry 0 is the root; levels follow one after the other. Valid until the next call."""
        raise NotImplementedError

    def _draft_tree(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None) -> Tree | DeviceTree:
        """A tree of ``spec``, which the engine allows. Commits the waiting rows."""
        raise NotImplementedError

    def _catch_up(self, following: int, width: int) -> int:
        """Commit the waiting rows. ``following``: the token after the last of them. Returns their number."""
        raise NotImplementedError

    def _clip(self, spec: TreeSpec) -> TreeSpec:
        """``spec`` clipped to the engine's width, depth and nodes."""
        width = min(spec.width, self._draft.max_width)
        if width < spec.width:
            spec = TreeSpec(min(spec.nodes, TreeSpec(1, spec.depth, width).capacity), spec.depth, width)
        return spec.within(self._limits.tree_nodes, self._draft.max_depth)

    def _padded_rows(self, count: int, max_rows: int) -> int:
        """Rows to compute for ``count``, at most ``max_rows``. A device uses few different numbers of rows, because extra rows cost nothing
        there and a new shape does."""
        return count if self._memory.on_host else min(next(size for size in self._row_sizes if size >= count), max_rows)

    def _reserve(self, slots: int) -> None:
        if slots > self._cache.span:
            self._cache.reserve(self._cache.span_for(slots))
