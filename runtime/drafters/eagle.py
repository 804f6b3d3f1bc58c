"""EAGLE-3 drafting: the tree grows inside the engines, one draft pass a level, and reaches the host when it is finished.

Committed tokens enter the draft's cache exactly once, paired with the target's own features of the position before them (EAGLE-3 section
3.1); drafted rows lie behind them and are overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy import GrowthPolicy, PartialTree, TreeSpec

from ..backends.base import Buffer, Engine, Memory
from ..backends.kv import Cache
from ..decoding.sampling import Scores
from ..decoding.target import GROWN, ORDER, common_prefix
from ..decoding.tree import GrownTree, Tree
from ..manifest.schema import Draft, Limits, Manifest
from .base import Drafter, DrafterParts

POOL = ("pool_scores", "pool_tokens", "pool_parents")
_CARRIED = ("scores", "ids", "mask", *POOL)  # what `expand` hands from level to level


def _turn(level: int) -> dict[str, str]:
    """Which of each pair `expand` reads and which it writes when it grows the level below ``level``; the root has buffers of its own."""
    read, written = str(level % 2) if level else "root", str((level + 1) % 2)
    names = {name: f"{name}.{read}" for name in _CARRIED} | {f"next_{name}": f"{name}.{written}" for name in _CARRIED}
    return {**names, "beam": ORDER, "rows": "last" if level == 0 else ORDER}


_TURNS = [_turn(level) for level in range(3)]
_FUSE = {"hidden": "fused"}
_CATCH_UP = {"tokens": "waiting.tokens", "hidden": "waiting", "tree_mask": "waiting.mask", "rows": "last", "slots": ORDER, "beam": ORDER}
_STEPS = [{"tree_mask": f"mask.{turn}", "rows": ORDER, "slots": ORDER, "beam": ORDER} for turn in (0, 1)]
_FINISH = [{name: f"{name}.{turn}" for name in POOL} | {name: f"tree.{name}" for name in GROWN} | {"nodes": ORDER} for turn in (0, 1)]


@dataclass(frozen=True)
class DraftEngines:
    """The four graphs of a draft. They share their buffers by name, so what one writes another reads in place."""

    fuse: Engine
    draft: Engine
    expand: Engine
    tree: Engine


def most_rows(limits: Limits, draft: Draft) -> int:
    """Rows of the largest draft pass: a chunk of the prompt, a level of a tree, or a path through one with its root."""
    return max(limits.prefill_rows, draft.max_width, draft.max_depth + 1)


def largest_pool(draft: Draft) -> int:
    """Entries of the pool of the widest and deepest tree, its root included."""
    return TreeSpec(1, draft.max_depth, draft.max_width).capacity


def shared_buffers(manifest: Manifest, draft: Draft, memory: Memory) -> dict[str, Buffer]:
    """Buffers that several graphs use. Those that `expand` reads and writes come in pairs, used in turn: name.0 and name.1."""
    rows, width, pool = most_rows(manifest.limits, draft), draft.max_width, largest_pool(draft)
    kind = manifest.graphs["draft"].inputs["hidden"].dtype
    sizes: dict[str, tuple[int, str]] = {
        "tokens": (rows, "int64"),
        "hidden": (rows * draft.hidden, kind),
        "fused": (rows * draft.hidden, kind),
        "waiting": (rows * draft.hidden, kind),
        "next_hidden": (rows * draft.hidden, kind),
        "log_probs": (width**2, "float32"),
        "candidates": (width**2, "int64"),
    }
    carried: dict[str, tuple[int, str]] = {
        "scores": (width, "float32"),
        "ids": (width, "int64"),
        "mask": (width * (1 + width * draft.max_depth), "bool"),
        "pool_scores": (pool, "float32"),
        "pool_tokens": (pool, "int64"),
        "pool_parents": (pool, "int64"),
    }
    sizes |= {f"{name}.{turn}": carried[name] for name in carried for turn in (0, 1)}
    sizes |= {f"{name}.root": (1, dtype) for name, (_, dtype) in carried.items() if name != "pool_tokens"}
    buffers = {name: memory.zeros(size, dtype) for name, (size, dtype) in sizes.items()}
    memory.write(buffers["pool_parents.root"], np.array([-1]))
    memory.write(buffers["mask.root"], np.array([True]))
    return buffers


class EagleDrafter:
    """Drafts with an EAGLE-3 model. Trees wider or deeper than the engine allows are cut to what it allows.

    ``buffers``: those of `shared_buffers`, with the finished tree's under tree.NAME.
    """

    def __init__(
        self, engines: DraftEngines, cache: Cache, draft: Draft, limits: Limits, memory: Memory, buffers: Mapping[str, Buffer]
    ) -> None:
        self._engines, self._cache, self._draft, self._memory, self._buffers = engines, cache, draft, memory, buffers
        self._limits = limits
        self._most, self._scored = most_rows(limits, draft), max(limits.tree_nodes, limits.prefill_rows)
        self._steps = [*(1 << power for power in range((self._most - 1).bit_length())), self._most]
        self._known: list[int] = []  # what was told since the cache was empty
        self._tokens: list[int] = []  # the last of them, which wait to be committed
        self._whole = True  # not while something changes, nor after an interruption or NaN
        self.begin()

    def warm_up(self, specs: Sequence[TreeSpec]) -> None:
        """Grow trees, so that the first request finds every buffer and thread in place. On a device after every number of rows that it
        computes and with every span: it records each, to repeat it at once."""
        for span in self._cache.spans():
            for count in [1] if self._memory.on_host else self._steps:
                for spec in (*specs, None):
                    self.begin()
                    self._cache.reserve(span)
                    self._fuse([0] * count, [0] * count)
                    self.draft(0, spec) if spec else self._catch_up(0, width=1)
        self.begin()

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """A slot holds a token's features and the token after it, so of n tokens that are the same as before n - 1 slots are right. Once in
        the cache, features are gone: the target has to compute those of the last of the n again."""
        same = common_prefix(self._known, tokens) if self._whole else 0
        kept = max(0, min(self._cache.length, same - 1))
        self._whole = False
        self._cache.truncate(kept)
        self._known, self._tokens = list(tokens[:kept]), []
        self._whole = True
        return kept

    def extend(self, tokens: Sequence[int], scores: Scores, rows: Sequence[int]) -> None:
        """The features themselves are where the target left them."""
        whole, self._whole = self._whole, False
        self._fuse(tokens, rows)
        self._known.extend(tokens)
        self._whole = whole

    def _fuse(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Fused features of committed tokens wait for the token after them."""
        if len(self._tokens) + len(tokens) > self._most:
            self._catch_up(tokens[0], width=1)  # one candidate, which nobody looks at
        count, size = len(tokens), self._draft.hidden
        call = self._engines.fuse.prepare(_FUSE, n=self._scored, m=self._filled(count, self._most))
        call.inputs["rows"][:count] = rows
        call.run()
        self._memory.copy(self._buffers["fused"], self._buffers["waiting"], len(self._tokens) * size, count * size)
        self._tokens.extend(tokens)

    def lookup(self, root: int, most: int) -> None:
        """Never: it takes a policy."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree | GrownTree:
        spec = self._fitting(spec)
        if spec.nodes == 1:  # so is a tree without depth or width
            return Tree.chain([root])
        whole, self._whole = self._whole, False
        tree = self._drafted(root, spec, growth)
        # Scores that are no numbers make bad guesses only, but what made them may be in the cache.
        self._whole = whole and (not self._memory.on_host or not math.isnan(np.add.reduce(self._buffers["log_probs"][: spec.width])))
        return tree

    def _drafted(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None) -> Tree | GrownTree:
        # Once for the whole tree: laying the cache out anew keeps committed rows, not those of the levels above.
        self._reserve(self._cache.length + len(self._tokens) + spec.width * (spec.depth - 1))
        if growth is None:
            return self._finish(root, self._grow(root, spec.depth, spec.width), spec.depth, spec.nodes)
        pool, level = self._grow(root, 1, spec.width), 1
        while level < spec.depth and growth.should_expand(self._partial_tree(spec, level, pool)):
            self._step(level, spec.width)
            pool, level = self._expand(level, pool, spec.width), level + 1
        nodes = min(growth.num_nodes(self._partial_tree(spec, level, pool)), spec.nodes, pool)
        return self._finish(root, pool, level, nodes) if nodes > 1 else Tree.chain([root])

    def _partial_tree(self, spec: TreeSpec, level: int, pool: int) -> PartialTree:
        scores = self._memory.read(self._buffers[f"pool_scores.{level % 2}"], (pool,))
        return PartialTree(spec, level, scores[1:], self._cache.length)

    def pool(self, root: int, depth: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Everything that a tree of this depth and width is chosen from, [p] each: summed log-probabilities, tokens, parents' entries. The
        root is entry 0; levels follow one after the other. Valid until the next call."""
        self._reserve(self._cache.length + len(self._tokens) + width * (depth - 1))
        size = self._grow(root, depth, width)
        scores, tokens, parents = (self._memory.read(self._buffers[f"{name}.{depth % 2}"], (size,)) for name in POOL)
        return scores, tokens, parents

    def _grow(self, root: int, depth: int, width: int) -> int:
        """All levels. Returns the size of the pool."""
        last_row = self._catch_up(root, width)
        pool = self._expand_root(root, last_row, width)
        for level in range(1, depth):
            self._step(level, width)
            pool = self._expand(level, pool, width)
        return pool

    def _fitting(self, spec: TreeSpec) -> TreeSpec:
        """``spec`` cut to the engine's width, depth and nodes."""
        width = min(spec.width, self._draft.max_width)
        if width < spec.width:
            spec = TreeSpec(min(spec.nodes, TreeSpec(1, spec.depth, width).capacity), spec.depth, width)
        return spec.within(self._limits.tree_nodes, self._draft.max_depth)

    def _catch_up(self, following: int, width: int) -> int:
        """Commit the rows that wait, now that the token after the last one is known. Returns how many they were."""
        count, past = len(self._tokens), self._cache.length
        rows = self._filled(count, min(self._most, self._draft.capacity - past))
        self._reserve(past + rows)
        call = self._engines.draft.prepare(_CATCH_UP, m=rows, w=rows, span=self._cache.span, r=1, k=width)
        inputs = call.inputs
        inputs["tokens"][0, :count] = [*self._tokens[1:], following]
        inputs["depth"][0] = np.arange(rows)
        inputs["tree_mask"][:] = np.tri(rows, dtype=bool)
        inputs["past"][0] = inputs["write"][0] = past
        inputs["rows"][0] = count - 1
        call.run()
        self._cache.commit(range(count))
        self._tokens.clear()
        return count

    def _filled(self, count: int, most: int) -> int:
        """Rows to compute for ``count``. On a device one of few numbers, whatever the rest holds, because a row costs nothing there and a
        new shape does."""
        return count if self._memory.on_host else min(next(step for step in self._steps if step >= count), most)

    def _expand_root(self, root: int, count: int, width: int) -> int:
        """The first level, from the last of ``count`` committed rows. Returns the size of the pool."""
        call = self._engines.expand.prepare(_TURNS[0], b=1, k=width, m=self._most, w=1, p=1, v=1 + width, q=1 + width)
        call.inputs["pool_tokens"][0] = root
        call.inputs["rows"][0] = count - 1
        call.run()
        return 1 + width

    def _step(self, level: int, width: int) -> None:
        """One draft pass over the beams of ``level``, which stand one position after the level above.

        The first column of their mask is the last committed row, which all of them see.
        """
        last, columns = self._cache.length - 1, 1 + width * level
        call = self._engines.draft.prepare(_STEPS[level % 2], m=width, w=columns, span=self._cache.span, r=width, k=width)
        inputs = call.inputs
        inputs["depth"][0] = level
        inputs["past"][0], inputs["write"][0] = last, last + columns - width
        call.run()

    def _expand(self, level: int, pool: int, width: int) -> int:
        """Candidates below the beams of ``level``. Returns the size of the pool."""
        columns, grown = 1 + width * level, pool + width**2
        sizes = {"b": width, "k": width, "m": self._most, "w": columns, "p": pool, "v": columns + width, "q": grown}
        self._engines.expand.prepare(_TURNS[2 - level % 2], **sizes).run()
        return grown

    def _finish(self, root: int, pool: int, depth: int, nodes: int) -> Tree | GrownTree:
        """The best ``nodes`` of the pool after ``depth`` levels; on the host copied, because the buffers are used again."""
        call = self._engines.tree.prepare(_FINISH[depth % 2], p=pool, n=nodes)
        call.run()
        if not self._memory.on_host:
            return GrownTree(nodes)
        tree = Tree(*(call.outputs[name].copy() for name in GROWN))
        return tree if tree.tokens[0] == root else Tree.chain([root])  # infinite scores outrank it

    def _reserve(self, slots: int) -> None:
        if slots > self._cache.span:
            self._cache.reserve(self._cache.fitting(slots))


def make(parts: DrafterParts) -> Drafter:
    """The draft model's own."""
    assert parts.eagle is not None
    return parts.eagle
