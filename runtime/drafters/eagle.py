"""EAGLE-3 drafting. The tree grows inside the engines, one draft pass per level, and reaches the host when it is complete.

A committed token enters the draft's cache once, paired with the target's features of the position before it (EAGLE-3 section 3.1). Drafted
rows lie after the committed ones and are overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policy import GrowthPolicy, PartialTree, TreeSpec

from ..backends.base import Buffer, Cache, Engine, Memory
from ..decoding.drafter import Drafter
from ..decoding.target import ARANGE, TREE_TENSORS
from ..decoding.tree import DeviceTree, Tree
from ..manifest.schema import Draft, Limits, Manifest
from .base import DrafterParts
from .draft_model import ModelDrafter, max_draft_rows

POOL = ("pool_scores", "pool_tokens", "pool_parents")
_STATE = ("scores", "ids", "mask", *POOL)  # what `expand` passes from level to level


def _expand_buffers(level: int) -> dict[str, str]:
    """The buffers of `expand` when it adds the level below ``level``. It reads one of each pair of state buffers and writes the other; the
    root's state has buffers of its own."""
    read, written = str(level % 2) if level else "root", str((level + 1) % 2)
    names = {name: f"{name}.{read}" for name in _STATE} | {f"next_{name}": f"{name}.{written}" for name in _STATE}
    return {**names, "beam": ARANGE, "rows": "last" if level == 0 else ARANGE}


# Graph input or output -> the buffer it is bound to, where the names differ. Lists are indexed by the state buffer that is read, 0 or 1.
_CATCH_UP = {"tokens": "waiting.tokens", "hidden": "waiting", "tree_mask": "waiting.mask", "rows": "last", "slots": ARANGE, "beam": ARANGE}
_DRAFT_LEVEL = [{"tree_mask": f"mask.{read}", "rows": ARANGE, "slots": ARANGE, "beam": ARANGE} for read in (0, 1)]
_EXPAND_ROOT, _EXPAND_LEVEL = _expand_buffers(0), [_expand_buffers(2), _expand_buffers(1)]
_SELECT = [
    {name: f"{name}.{read}" for name in POOL} | {name: f"tree.{name}" for name in TREE_TENSORS} | {"nodes": ARANGE} for read in (0, 1)
]


@dataclass(frozen=True)
class DraftEngines:
    """The engines of a draft's four graphs. They share buffers by name, so one reads in place what another wrote."""

    fuse: Engine
    draft: Engine
    expand: Engine
    tree: Engine


def max_pool_size(draft: Draft) -> int:
    """Entries in the pool of candidates of the widest and deepest tree, root included."""
    return TreeSpec(1, draft.max_depth, draft.max_width).capacity


def shared_buffers(manifest: Manifest, draft: Draft, memory: Memory) -> dict[str, Buffer]:
    """Buffers that several draft graphs use. The state of `expand` has pairs of buffers, NAME.0 and NAME.1, which alternate as its input
    and output, and NAME.root."""
    rows, width, pool = max_draft_rows(manifest.limits, draft), draft.max_width, max_pool_size(draft)
    dtype = manifest.graphs["draft"].inputs["hidden"].dtype
    sizes: dict[str, tuple[int, str]] = {
        "tokens": (rows, "int64"),
        "hidden": (rows * draft.hidden, dtype),
        "fused": (rows * draft.hidden, dtype),
        "waiting": (rows * draft.hidden, dtype),
        "next_hidden": (rows * draft.hidden, dtype),
        "log_probs": (width**2, "float32"),
        "candidates": (width**2, "int64"),
    }
    state: dict[str, tuple[int, str]] = {
        "scores": (width, "float32"),
        "ids": (width, "int64"),
        "mask": (width * (1 + width * draft.max_depth), "bool"),
        "pool_scores": (pool, "float32"),
        "pool_tokens": (pool, "int64"),
        "pool_parents": (pool, "int64"),
    }
    sizes |= {f"{name}.{index}": state[name] for name in state for index in (0, 1)}
    sizes |= {f"{name}.root": (1, kind) for name, (_, kind) in state.items() if name != "pool_tokens"}
    buffers = {name: memory.zeros(size, kind) for name, (size, kind) in sizes.items()}
    memory.write(buffers["pool_parents.root"], np.array([-1]))
    memory.write(buffers["mask.root"], np.array([True]))
    return buffers


class EagleDrafter(ModelDrafter):
    """Drafts with an EAGLE-3 model. ``buffers``: those of `shared_buffers`, and the finished tree's as tree.NAME."""

    def __init__(
        self, engines: DraftEngines, cache: Cache, draft: Draft, limits: Limits, memory: Memory, buffers: Mapping[str, Buffer]
    ) -> None:
        self._engines = engines
        super().__init__(engines.fuse, cache, draft, limits, memory, buffers)

    def _draft_tree(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None) -> Tree | DeviceTree:
        # Reserve once for the whole tree: a new cache layout keeps committed rows, but not the rows of earlier levels.
        self._reserve(self._cache.length + len(self._waiting) + spec.width * (spec.depth - 1))
        if growth is None:
            return self._select(root, self._grow(root, spec.depth, spec.width), spec.depth, spec.nodes)
        pool, level = self._grow(root, 1, spec.width), 1
        while level < spec.depth and growth.should_expand(self._partial_tree(spec, level, pool)):
            self._draft_level(level, spec.width)
            pool, level = self._expand(level, pool, spec.width), level + 1
        nodes = min(growth.num_nodes(self._partial_tree(spec, level, pool)), spec.nodes, pool)
        return self._select(root, pool, level, nodes) if nodes > 1 else Tree.chain([root])

    def _partial_tree(self, spec: TreeSpec, level: int, pool: int) -> PartialTree:
        scores = self._memory.read(self._buffers[f"pool_scores.{level % 2}"], (pool,))
        return PartialTree(spec, level, scores[1:], self._cache.length)

    def pool(self, root: int, depth: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._reserve(self._cache.length + len(self._waiting) + width * (depth - 1))
        size = self._grow(root, depth, width)
        scores, tokens, parents = (self._memory.read(self._buffers[f"{name}.{depth % 2}"], (size,)) for name in POOL)
        return scores, tokens, parents

    def _grow(self, root: int, depth: int, width: int) -> int:
        """Draft all levels. Returns the size of the pool."""
        last_row = self._catch_up(root, width)
        pool = self._expand_root(root, last_row, width)
        for level in range(1, depth):
            self._draft_level(level, width)
            pool = self._expand(level, pool, width)
        return pool

    def _catch_up(self, following: int, width: int) -> int:
        count, past = len(self._waiting), self._cache.length
        rows = self._padded_rows(count, min(self._max_rows, self._draft.capacity - past))
        self._reserve(past + rows)
        call = self._engines.draft.prepare(_CATCH_UP, m=rows, w=rows, span=self._cache.span, r=1, k=width)
        inputs = call.inputs
        inputs["tokens"][0, :count] = [*self._waiting[1:], following]
        inputs["depth"][0] = np.arange(rows)
        inputs["tree_mask"][:] = np.tri(rows, dtype=bool)
        inputs["past"][0] = inputs["write"][0] = past
        inputs["rows"][0] = count - 1
        call.run()
        self._cache.commit(range(count))
        self._waiting.clear()
        return count

    def _expand_root(self, root: int, count: int, width: int) -> int:
        """Add the first level, from the last of ``count`` committed rows. Returns the size of the pool."""
        call = self._engines.expand.prepare(_EXPAND_ROOT, b=1, k=width, m=self._max_rows, w=1, p=1, v=1 + width, q=1 + width)
        call.inputs["pool_tokens"][0] = root
        call.inputs["rows"][0] = count - 1
        call.run()
        return 1 + width

    def _draft_level(self, level: int, width: int) -> None:
        """One draft pass over the beams of ``level``, at the position after the level above.

        The first column of their mask is the last committed row, to which all of them attend.
        """
        last, columns = self._cache.length - 1, 1 + width * level
        call = self._engines.draft.prepare(_DRAFT_LEVEL[level % 2], m=width, w=columns, span=self._cache.span, r=width, k=width)
        inputs = call.inputs
        inputs["depth"][0] = level
        inputs["past"][0], inputs["write"][0] = last, last + columns - width
        call.run()

    def _expand(self, level: int, pool: int, width: int) -> int:
        """Add the candidates below the beams of ``level``. Returns the size of the pool."""
        columns, grown = 1 + width * level, pool + width**2
        sizes = {"b": width, "k": width, "m": self._max_rows, "w": columns, "p": pool, "v": columns + width, "q": grown}
        self._engines.expand.prepare(_EXPAND_LEVEL[level % 2], **sizes).run()
        return grown

    def _select(self, root: int, pool: int, depth: int, nodes: int) -> Tree | DeviceTree:
        """The tree of the best ``nodes`` in the pool after ``depth`` levels. On the host it is a copy, because the buffers are reused."""
        call = self._engines.tree.prepare(_SELECT[depth % 2], p=pool, n=nodes)
        call.run()
        if not self._memory.on_host:
            return DeviceTree(nodes)
        tokens, parent, depths, mask = (call.outputs[name].copy() for name in TREE_TENSORS)
        tree = Tree(tokens, parent, depths, mask)
        return tree if tree.tokens[0] == root else Tree.chain([root])  # infinite scores rank above the root


def make(parts: DrafterParts) -> Drafter:
    """The drafter "eagle"."""
    assert parts.model_drafter is not None
    return parts.model_drafter
