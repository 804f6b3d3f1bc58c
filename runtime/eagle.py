"""EAGLE-3 drafting: the tree grows inside the engines, one draft pass a level, and reaches the host when it is finished.

Committed tokens enter the draft's cache exactly once, paired with the target's own features of the position before them (EAGLE-3 section
3.1); drafted rows lie behind them and are overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy import TreeSpec

from .engine import Call, Engine
from .kv import KVCache
from .manifest import Draft, Limits, Manifest
from .sampling import Scores
from .tree import Tree

POOL = ("scores", "tokens", "parents")


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


def shared_buffers(manifest: Manifest, draft: Draft, cache: KVCache) -> dict[str, np.ndarray]:
    """Flat buffers that several graphs use. Those that `expand` reads and writes come in pairs, used in turn: name.0 and name.1."""
    rows = most_rows(manifest.limits, draft)
    width, depth = draft.max_width, draft.max_depth
    pool = 1 + width + (depth - 1) * width**2
    kind = manifest.graphs["draft"].inputs["hidden"].dtype
    single: dict[str, tuple[int, str]] = {
        "tokens": (rows, "int64"),
        "hidden": (rows * draft.hidden, kind),
        "next_hidden": (rows * draft.hidden, kind),
        "log_probs": (width**2, "float32"),
        "candidates": (width**2, "int64"),
        "rows": (width, "int64"),
        "beam": (width, "int64"),
    }
    double: dict[str, tuple[int, str]] = {
        "scores": (width, "float32"),
        "ids": (width, "int64"),
        "mask": (width * width * depth, "bool"),
        "pool_scores": (pool, "float32"),
        "pool_tokens": (pool, "int64"),
        "pool_parents": (pool, "int64"),
    }
    buffers = {name: np.zeros(size, dtype) for name, (size, dtype) in single.items()}
    buffers |= {f"{name}.{turn}": np.zeros(size, dtype) for name, (size, dtype) in double.items() for turn in (0, 1)}
    buffers["beam"][:] = np.arange(width)
    return buffers | cache.tensors()


class EagleDrafter:
    """Drafts with an EAGLE-3 model. Trees wider or deeper than the engine allows are cut to what it allows."""

    def __init__(self, engines: DraftEngines, cache: KVCache, draft: Draft, limits: Limits) -> None:
        self._engines, self._cache, self._draft, self._limits = engines, cache, draft, limits
        self._order = np.arange(draft.capacity)
        fused = engines.fuse.prepare(m=most_rows(limits, draft)).outputs["hidden"]
        self._waiting = np.zeros(fused.shape[1:], fused.dtype)  # fused features of committed tokens that wait for the token after them
        first = engines.draft.prepare(self._names(0), m=1, w=1, span=draft.capacity, r=1, k=1)
        first.inputs["slots"][:] = self._order
        self.begin()

    def warm_up(self, spec: TreeSpec) -> None:
        """Grow one tree from nothing, so that the first request finds every buffer and thread in place."""
        features = self._engines.fuse.prepare(m=1).inputs["features"]
        empty = np.zeros(features.shape[1:], features.dtype)
        self.extend([0], Scores(empty, empty, empty), [0])
        self.draft(0, spec)
        self.begin()

    def begin(self) -> None:
        self._tokens: list[int] = []
        self._cache.truncate(0)

    def extend(self, tokens: Sequence[int], scores: Scores, rows: Sequence[int]) -> None:
        if len(self._tokens) + len(tokens) > len(self._waiting):
            self._catch_up(tokens[0], width=1)
        call = self._engines.fuse.prepare(m=len(tokens))
        call.inputs["features"][0] = scores.features[list(rows)]
        call.run()
        start = len(self._tokens)
        self._waiting[start : start + len(tokens)] = call.outputs["hidden"][0]
        self._tokens.extend(tokens)

    def draft(self, root: int, spec: TreeSpec) -> Tree:
        spec = self._fitting(spec)
        if spec.nodes == 1:  # so is a tree without depth or width
            return Tree.chain([root])
        # Once for the whole tree: laying the cache out anew keeps committed rows, not those of the levels above.
        self._reserve(self._cache.length + len(self._tokens) + spec.width * (spec.depth - 1))
        last_row = self._catch_up(root, spec.width)
        pool = self._expand_root(root, last_row, spec.width)
        for level in range(1, spec.depth):
            self._step(level, spec.width)
            pool = self._expand(level, pool, spec.width)
        return self._finish(pool, spec)

    def _fitting(self, spec: TreeSpec) -> TreeSpec:
        """``spec`` cut to the engine's width and depth."""
        width = min(spec.width, self._draft.max_width)
        if width < spec.width:
            spec = TreeSpec(min(spec.nodes, TreeSpec(1, spec.depth, width).capacity), spec.depth, width)
        return spec.within(spec.nodes, self._draft.max_depth)

    def _catch_up(self, following: int, width: int) -> int:
        """Commit the rows that wait, now that the token after the last one is known. Returns the last one's row."""
        count, past = len(self._tokens), self._cache.length
        self._reserve(past + count)
        call = self._call({"tree_mask": "mask.chain"}, m=count, w=count, r=1, k=width)
        inputs = call.inputs
        inputs["tokens"][0] = [*self._tokens[1:], following]
        inputs["hidden"][0] = self._waiting[:count]
        inputs["depth"][0] = self._order[:count]
        inputs["tree_mask"][:] = np.tri(count, dtype=bool)
        inputs["past"][0] = inputs["write"][0] = past
        inputs["rows"][0] = count - 1
        call.run()
        self._cache.commit(range(count))
        self._tokens.clear()
        return count

    def _expand_root(self, root: int, rows: int, width: int) -> int:
        """The first level, from the last committed row. Returns the size of the pool."""
        call = self._engines.expand.prepare(self._names(0), b=1, k=width, m=rows, w=0, p=1, v=width, q=1 + width)
        inputs = call.inputs
        inputs["scores"][0], inputs["ids"][0] = 0.0, 0
        inputs["pool_scores"][0], inputs["pool_tokens"][0], inputs["pool_parents"][0] = 0.0, root, -1
        call.run()
        return 1 + width

    def _step(self, level: int, width: int) -> None:
        """One draft pass over the beams of ``level``, which stand one position after the level above."""
        past, columns = self._cache.length, width * level
        call = self._call({"tree_mask": f"mask.{level % 2}"}, m=width, w=columns, r=width, k=width)
        inputs = call.inputs
        inputs["depth"][0] = level - 1
        inputs["past"][0], inputs["write"][0] = past, past + columns - width
        inputs["rows"][:] = self._order[:width]
        call.run()

    def _expand(self, level: int, pool: int, width: int) -> int:
        """Candidates below the beams of ``level``. Returns the size of the pool."""
        columns, grown = width * level, pool + width**2
        self._engines.expand.prepare(self._names(level), b=width, k=width, m=width, w=columns, p=pool, v=columns + width, q=grown).run()
        return grown

    def _finish(self, pool: int, spec: TreeSpec) -> Tree:
        """The best ``spec.nodes`` of the pool, copied: the buffers are used again."""
        turn = spec.depth % 2
        call = self._engines.tree.prepare({f"pool_{name}": f"pool_{name}.{turn}" for name in POOL}, p=pool, n=spec.nodes)
        call.run()
        found = call.outputs
        return Tree(found["tokens"].copy(), found["parent"].copy(), found["depth"].copy(), found["tree_mask"].copy())

    def _call(self, names: dict[str, str], **sizes: int) -> Call:
        return self._engines.draft.prepare(names, span=self._cache.span, **sizes)

    def _names(self, level: int) -> dict[str, str]:
        """Which of each pair `expand` reads and which it writes when it grows the level below ``level``."""
        read, written = level % 2, (level + 1) % 2
        carried = ("scores", "ids", "mask", *(f"pool_{name}" for name in POOL))
        return {**{name: f"{name}.{read}" for name in carried}, **{f"next_{name}": f"{name}.{written}" for name in carried}}

    def _reserve(self, slots: int) -> None:
        if slots > self._cache.span:
            step = self._limits.span_step
            self._cache.reserve(min(-(-slots // step) * step, self._draft.capacity))
