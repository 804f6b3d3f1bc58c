"""Drafts that guess all levels in one pass: P-EAGLE (arXiv 2602.01469) and DFlash (arXiv 2602.06036).

Every level has one distribution, whatever was guessed above it. So a path's score is the product of its levels' probabilities, and the tree
has the best paths, as in DDTree (arXiv 2604.12989): the beams of a level, which are the best ``width`` candidates of the level above, have
the level's best ``width`` tokens as children. Another level costs no pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from policy import GrowthPolicy, TreeSpec

from ..backends.base import Backend, Buffer, Cache, Call, Engine, Memory
from ..decoding.target import ARANGE
from ..decoding.tree import Tree
from ..manifest.schema import P_EAGLE, Draft, Limits, Manifest, OnePass
from .draft_model import ModelDrafter, max_draft_rows
from .growth import GrowingTree

_PASS = {"hidden": "waiting", "slots": ARANGE, "beam": ARANGE}


class OnePassDrafter(ModelDrafter):
    """What both kinds share. On the host only. ``buffers``: as ModelDrafter needs them."""

    def __init__(
        self,
        one_pass: OnePass,
        fuse: Engine,
        engine: Engine,
        cache: Cache,
        draft: Draft,
        limits: Limits,
        memory: Memory,
        buffers: Mapping[str, Buffer],
    ) -> None:
        self._one_pass, self._engine = one_pass, engine
        super().__init__(fuse, cache, draft, limits, memory, buffers)

    def pool(self, root: int, depth: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._grown(root, TreeSpec(1, depth, width)).pool

    def _draft_tree(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None) -> Tree:
        growing = self._grown(root, spec)
        nodes = min(growth.num_nodes(growing.partial), spec.nodes) if growth else spec.nodes
        tree = growing.tree(nodes)
        return tree if nodes > 1 and tree.tokens[0] == root else Tree.chain([root])  # infinite scores rank above the root

    def _grown(self, root: int, spec: TreeSpec) -> GrowingTree:
        """The tree with all levels of ``spec``: they were computed together, so none can be saved."""
        call = self._guess(root, spec.depth, spec.width)
        log_probs, candidates = call.outputs["log_probs"], call.outputs["candidates"]
        growing = GrowingTree(root, spec, self._cache.length)
        while growing.level < spec.depth:
            row, beams = slice(growing.level, growing.level + 1), len(growing.beam_scores)
            growing.add(log_probs[row].repeat(beams, 0), candidates[row].repeat(beams, 0), np.zeros((beams, 0), np.float32))
        return growing

    def _catch_up(self, following: int, width: int) -> int:
        count = len(self._waiting)
        self._guess(following, 0, width)
        return count

    def _guess(self, root: int, depth: int, width: int) -> Call:
        """Commit the waiting rows, and guess ``depth`` tokens after ``root`` in the same pass. The outputs log_probs and candidates [depth,
        width] have a row for each level."""
        raise NotImplementedError

    def _committed_in(self, call: Call) -> Call:
        """Run ``call``, whose first rows are the waiting ones."""
        call.run()
        self._cache.commit(range(len(self._waiting)))
        self._waiting.clear()
        return call


class PEagleDrafter(OnePassDrafter):
    """An EAGLE-3 draft whose rows without features of the target have a learned feature and the mask token. A row is guessed from the last
    committed token and the rows before its own, so fewer levels need fewer rows."""

    @cached_property
    def _masked(self) -> np.ndarray:
        """The learned feature [H]. `fuse` has it behind the last row of the target's features."""
        call = self._fuse_engine.prepare({"hidden": "fused"}, n=self._feature_rows, m=1)
        call.inputs["rows"][0] = self._feature_rows
        call.run()
        return np.array(self._buffers["fused"][: self._draft.hidden])

    def _guess(self, root: int, depth: int, width: int) -> Call:
        count, past, levels = len(self._waiting), self._cache.length, max(1, depth)
        rows = count + levels - 1  # the last committed row guesses the first level
        self._reserve(past + rows)
        self._buffers["waiting"][count * self._draft.hidden : rows * self._draft.hidden] = np.tile(self._masked, levels - 1)
        call = self._engine.prepare(_PASS, m=rows, w=rows, span=self._cache.span, r=levels, k=width)
        inputs = call.inputs
        inputs["tokens"][0] = [*self._waiting[1:], root, *[self._one_pass.mask_token] * (levels - 1)]
        inputs["depth"][0] = np.arange(rows)
        inputs["tree_mask"][:] = np.tri(rows, dtype=bool)
        inputs["past"][0] = inputs["write"][0] = past
        inputs["rows"][:] = range(count - 1, rows)
        return self._committed_in(call)


class DFlashDrafter(OnePassDrafter):
    """A block of the root and mask tokens, whose rows see each other and the target's features of all committed tokens. It is computed as a
    whole, as it was trained, however few levels are asked for."""

    def _guess(self, root: int, depth: int, width: int) -> Call:
        count, past, block = len(self._waiting), self._cache.length, self._one_pass.rows if depth else 1
        self._reserve(past + count + block)
        call = self._engine.prepare(_PASS, m=block, n=count, span=self._cache.span, r=max(1, depth), k=width)
        inputs = call.inputs
        inputs["tokens"][0] = [root, *[self._one_pass.mask_token] * (block - 1)]
        inputs["past"][0] = past
        first = self._one_pass.rows - self._draft.max_depth if depth else 0
        inputs["rows"][:] = range(first, first + max(1, depth))
        return self._committed_in(call)


def load(
    backend: Backend, manifest: Manifest, draft: Draft, one_pass: OnePass, cache: Cache, shared: Mapping[str, Buffer]
) -> OnePassDrafter:
    """The drafter of an engine directory. ``shared``: buffers of other graphs, the target's features among them."""
    limits, memory, dtype = manifest.limits, backend.memory, manifest.graphs["draft"].inputs["hidden"].dtype
    rows, levels = max_draft_rows(limits, draft), draft.max_depth
    sizes = {"fused": (rows * draft.hidden, dtype), "waiting": ((rows + levels) * draft.hidden, dtype)}
    sizes |= {"log_probs": (levels * draft.max_width, "float32"), "candidates": (levels * draft.max_width, "int64")}
    buffers = {**shared, **{name: memory.zeros(size, kind) for name, (size, kind) in sizes.items()}}
    most = rows + max(levels, one_pass.rows)
    fuse = backend.engine("fuse", buffers, {"n": max(limits.tree_nodes, limits.prefill_rows), "m": rows})
    largest = {"m": most, "n": rows, "w": most, "span": draft.capacity, "r": levels, "k": draft.max_width}
    engine = backend.engine("draft", {**buffers, **cache.tensors()}, largest)
    kind = PEagleDrafter if one_pass.kind == P_EAGLE else DFlashDrafter
    return kind(one_pass, fuse, engine, cache, draft, limits, memory, buffers)
