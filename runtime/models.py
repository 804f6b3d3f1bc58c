"""Where an engine directory runs, and the target and drafter that are made of its engines there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from policy import LatencyModel, TreeSpec

from .backends.base import Backend, Buffer, dtype_of
from .backends.kv import CacheLayout
from .decoding.gumbel import GumbelMax, work_room
from .decoding.sampling import BatchInverseCdf, Pick, greedy
from .decoding.target import GROWN, ORDER, Target
from .drafters.base import Drafter, DrafterParts
from .drafters.eagle import DraftEngines, EagleDrafter, largest_pool, most_rows, shared_buffers
from .drafters.registry import DrafterKind
from .errors import EngineDirError
from .manifest.graphs import Graph, Tensor
from .manifest.schema import Draft, Manifest
from .sampling_params import SamplingParams


@dataclass(frozen=True)
class Models:
    """What decodes. ``picker`` makes the choice of tokens for one request; ``eagle``: the EAGLE-3 draft by itself, where there is one."""

    target: Target
    drafter: Drafter
    picker: Callable[[SamplingParams], Pick]
    eagle: EagleDrafter | None


def load_models(
    backend: Backend, manifest: Manifest, kind: DrafterKind, specs: Sequence[TreeSpec], latency: LatencyModel, fixed_tree: TreeSpec
) -> Models:
    """``specs``: trees that will be asked for, to be ready from the first request on; ``latency``, ``fixed_tree``: as in DrafterParts."""
    memory, limits, shape = backend.memory, manifest.limits, manifest.shape
    draft = manifest.draft if kind.uses_draft_model else None
    rows, nodes = max(limits.tree_nodes, limits.prefill_rows), limits.tree_nodes
    graph = manifest.graphs["target"]
    slots = max(limits.capacity, draft.capacity if draft else 0)
    order = memory.zeros(slots, "int64")
    memory.write(order, np.arange(slots))
    often_read = {f"tree.{name}": (nodes, "int64") for name in GROWN if name != "tree_mask"}
    often_read |= {"tree.tree_mask": (nodes * nodes, "bool"), "next_token": (nodes, "int64"), "token": (nodes, "int64")}
    mail = memory.mailbox(often_read)
    grown = {name: mail[f"tree.{name}"] for name in GROWN}
    features = memory.zeros(rows * len(shape.captured_layers) * shape.hidden, graph.outputs["features"].dtype)
    logits = memory.zeros(nodes * shape.vocab, "float32")

    cache = backend.cache(shape.layers, *_cache_layouts(graph), limits.capacity)
    shared = {ORDER: order, "next_token": mail["next_token"], "logits": logits, "features": features}
    shared |= {**cache.tensors(), **{f"tree.{name}": grown[name] for name in GROWN}}
    engine = backend.engine("target", shared, {"n": rows, "span": limits.capacity, "r": nodes})
    target = Target(engine, cache, limits, memory, None if memory.on_host or draft is None else grown)

    picker = _picker(backend, manifest, logits, mail["token"])
    eagle: EagleDrafter | None = None
    if draft is not None:
        eagle = _eagle(backend, manifest, draft, {ORDER: order, "features": features, **{f"tree.{name}": grown[name] for name in GROWN}})
    target.warm_up((1, 2, *kind.lookup_rows) if memory.on_host else manifest.tree_sizes)
    if eagle is not None:
        eagle.warm_up(specs)
    make: Callable[[DrafterParts], Drafter] = import_module(f".drafters.{kind.module}", __package__).make
    return Models(target, make(DrafterParts(eagle, latency, fixed_tree)), picker, eagle)


def _cache_layouts(graph: Graph) -> tuple[CacheLayout, CacheLayout]:
    """Of keys and values."""
    keys, values = (graph.inputs[f"past.0.{kind}"] for kind in ("key", "value"))
    return _layout(keys), _layout(values)


def _layout(tensor: Tensor) -> CacheLayout:
    parts, heads, _, width = tensor.shape
    return CacheLayout(int(parts), int(heads), int(width), dtype_of(tensor.dtype))


def _picker(backend: Backend, manifest: Manifest, logits: Buffer, token: Buffer) -> Callable[[SamplingParams], Pick]:
    memory, positions, nodes = backend.memory, manifest.limits.capacity, manifest.limits.tree_nodes
    if memory.on_host:
        room = work_room(manifest.shape.vocab)
        return lambda params: greedy if params.greedy else GumbelMax(params, room)
    uniforms = memory.zeros(positions, "float32")
    shared = {"logits": logits, "uniforms": uniforms, "token": token}
    engine = backend.engine("sample", shared, {"n": nodes, "p": positions})

    def picker(params: SamplingParams) -> Pick:
        return greedy if params.greedy else BatchInverseCdf(engine, memory, uniforms, params, positions)

    return picker


def _eagle(backend: Backend, manifest: Manifest, draft: Draft, shared: Mapping[str, Buffer]) -> EagleDrafter:
    limits, memory, rows, width = manifest.limits, backend.memory, most_rows(manifest.limits, draft), draft.max_width
    cache = backend.cache(draft.layers, *_cache_layouts(manifest.graphs["draft"]), draft.capacity)
    buffers = {**shared, **shared_buffers(manifest, draft, memory)}
    columns, pool = 1 + width * draft.max_depth, largest_pool(draft)
    sizes = {"m": rows, "w": max(rows, columns), "span": draft.capacity, "r": width, "k": width}
    engines = DraftEngines(
        fuse=backend.engine("fuse", buffers, {"n": max(limits.tree_nodes, limits.prefill_rows), "m": rows}),
        draft=backend.engine("draft", {**buffers, **cache.tensors()}, sizes),
        expand=backend.engine("expand", buffers, {"b": width, "k": width, "m": rows, "w": columns, "p": pool, "v": columns, "q": pool}),
        tree=backend.engine("tree", buffers, {"p": pool, "n": limits.tree_nodes}),
    )
    return EagleDrafter(engines, cache, draft, limits, memory, buffers)


def expect_tree_size(manifest: Manifest, spec: TreeSpec) -> None:
    """Raises EngineDirError when the engines have no profile for trees of this size."""
    if manifest.tensorrt is not None and spec.nodes not in manifest.tree_sizes:
        sizes = ", ".join(map(str, manifest.tree_sizes))
        raise EngineDirError(
            f"the engines have no profile for trees of {spec.nodes} nodes, only for {sizes} — choose one of these, or export with "
            f"--tree-sizes {','.join(map(str, sorted({*manifest.tree_sizes, spec.nodes})))}"
        )
