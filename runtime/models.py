"""Builds the target, the drafter and the samplers of an engine directory on a backend, with the buffers that their engines share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from policy import FixedPolicy, Policy, RoundCosts, TreeSpec

from .backends.base import Backend, Buffer, CacheLayout, dtype_of
from .constraints.drafter import constrained_drafter
from .constraints.state import ConstraintState
from .decoding.drafter import Drafter
from .decoding.gumbel import MakeSampler, host_samplers
from .decoding.path_rules import PathRules
from .decoding.sampling import InverseCdfSampler, Sampler
from .decoding.target import ARANGE, TREE_TENSORS, Target
from .drafters import one_pass
from .drafters.base import DrafterParts
from .drafters.draft_model import ModelDrafter, max_draft_rows
from .drafters.eagle import DraftEngines, EagleDrafter, max_pool_size, shared_buffers
from .drafters.ngram import NgramDrafter
from .drafters.none import NoDrafter
from .drafters.past import Past
from .drafters.registry import DrafterKind
from .drafters.suffix import SuffixDrafter
from .errors import EngineDirError
from .manifest.graphs import Graph, Tensor
from .manifest.schema import Draft, Manifest
from .sampling_params import SamplingParams


@dataclass(frozen=True)
class Models:
    """The models of one Decoder. ``make_sampler``: makes the Sampler of a request. ``model_drafter``: the drafter of the draft model alone,
    None if there is none."""

    target: Target
    drafter: Drafter
    make_sampler: MakeSampler
    model_drafter: ModelDrafter | None

    def forget(self) -> None:
        """Drop the cached prefix."""
        self.target.cache_valid = False

    def drafter_for(self, policy: Policy, constraint: ConstraintState | None = None, past: Past | None = None) -> Drafter:
        """NoDrafter for plain decoding, which then need not keep the draft's cache up to date, else the Decoder's drafter, which
        looks up ``past`` answers. On a device a ``constraint`` changes no tree: trees lie there, and only some sizes are prepared."""
        plain = isinstance(policy, FixedPolicy) and policy.spec.nodes == 1
        drafter = NoDrafter() if plain and self.model_drafter is not None else with_past(self.drafter, past)
        return constrained_drafter(drafter, constraint, policy) if self.target.on_host else drafter


def load_models(
    backend: Backend, manifest: Manifest, kind: DrafterKind, specs: Sequence[TreeSpec], latency: RoundCosts, fixed_tree: TreeSpec
) -> Models:
    """Load the graphs and warm them up. ``specs``: the trees to prepare for. ``latency``, ``fixed_tree``: as in DrafterParts."""
    memory, limits, shape = backend.memory, manifest.limits, manifest.shape
    draft = manifest.draft if kind.uses_draft_model else None
    rows, nodes = max(limits.tree_nodes, limits.prefill_rows), limits.tree_nodes
    graph = manifest.graphs["target"]
    slots = max(limits.capacity, draft.capacity if draft else 0)
    arange = memory.zeros(slots, "int64")
    memory.write(arange, np.arange(slots))
    readback_sizes = {f"tree.{name}": (nodes, "int64") for name in TREE_TENSORS if name != "tree_mask"}
    readback_sizes |= {"tree.tree_mask": (nodes * nodes, "bool"), "next_token": (nodes, "int64"), "token": (nodes, "int64")}
    readback = memory.readback_buffers(readback_sizes)
    tree_buffers = {f"tree.{name}": readback[f"tree.{name}"] for name in TREE_TENSORS}
    features = memory.zeros(rows * len(shape.captured_layers) * shape.hidden, graph.outputs["features"].dtype)
    logits = memory.zeros(nodes * shape.vocab, "float32")

    cache = backend.cache(shape.layers, *_cache_layouts(graph), limits.capacity)
    shared = {ARANGE: arange, "next_token": readback["next_token"], "logits": logits, "features": features}
    engine = backend.engine("target", {**shared, **cache.tensors(), **tree_buffers}, {"n": rows, "span": limits.capacity, "r": nodes})
    device_tree = None if memory.on_host or draft is None else {name: tree_buffers[f"tree.{name}"] for name in TREE_TENSORS}
    target = Target(engine, cache, limits, memory, device_tree)

    make_sampler = _sampler_factory(backend, manifest, logits, readback["token"])
    model_drafter: ModelDrafter | None = None
    if draft is not None:
        model_drafter = _load_model_drafter(backend, manifest, draft, {ARANGE: arange, "features": features, **tree_buffers})
    target.warm_up((1, 2, *kind.lookup_rows) if memory.on_host else manifest.tree_sizes, kind.looks_up)
    if memory.on_host and manifest.quantized:
        target.use_one_kernel()
    if model_drafter is not None:
        model_drafter.warm_up(specs)
    make: Callable[[DrafterParts], Drafter] = import_module(f".drafters.{kind.module}", __package__).make
    most = max_draft_rows(limits, draft) if draft else nodes  # the draft reads an accepted chain in one pass
    prepared = None if memory.on_host else tuple(size for size in manifest.tree_sizes if 2 < size <= most)
    return Models(target, make(DrafterParts(model_drafter, latency, fixed_tree, prepared)), make_sampler, model_drafter)


def with_past(drafter: Drafter, past: Past | None) -> Drafter:
    """``drafter``, which looks up ``past`` answers from now on if it looks up anything."""
    if isinstance(drafter, SuffixDrafter | NgramDrafter):
        drafter.past = past
    return drafter


def _cache_layouts(graph: Graph) -> tuple[CacheLayout, CacheLayout]:
    """The layouts of keys and of values."""
    keys, values = (graph.inputs[f"past.0.{kind}"] for kind in ("key", "value"))
    return _layout(keys), _layout(values)


def _layout(tensor: Tensor) -> CacheLayout:
    parts, heads, _, width = tensor.shape
    return CacheLayout(int(parts), int(heads), int(width), dtype_of(tensor.dtype))


def _sampler_factory(backend: Backend, manifest: Manifest, logits: Buffer, token: Buffer) -> MakeSampler:
    memory, positions, nodes = backend.memory, manifest.limits.capacity, manifest.limits.tree_nodes
    on_host = host_samplers(manifest.shape.vocab)
    if memory.on_host:
        return on_host
    uniforms = memory.zeros(positions, "float32")
    shared = {"logits": logits, "uniforms": uniforms, "token": token}
    engine = backend.engine("sample", shared, {"n": nodes, "p": positions})

    def make_sampler(params: SamplingParams, rules: PathRules | None = None) -> Sampler:
        if params.greedy or rules is not None or params.min_p > 0 or params.typical_p < 1:  # which the sample graph does not know
            return on_host(params, rules)
        return InverseCdfSampler(engine, memory, uniforms, params, positions)

    return make_sampler


def _load_model_drafter(backend: Backend, manifest: Manifest, draft: Draft, shared: Mapping[str, Buffer]) -> ModelDrafter:
    limits, memory, rows, width = manifest.limits, backend.memory, max_draft_rows(manifest.limits, draft), draft.max_width
    cache = backend.cache(draft.layers, *_cache_layouts(manifest.graphs["draft"]), draft.capacity)
    if draft.one_pass:
        if not memory.on_host:
            raise EngineDirError("a draft that guesses several tokens in one pass runs on the CPU only — use --device cpu or --draft none")
        return one_pass.load(backend, manifest, draft, draft.one_pass, cache, shared)
    buffers = {**shared, **shared_buffers(manifest, draft, memory)}
    columns, pool = 1 + width * draft.max_depth, max_pool_size(draft)
    sizes = {"m": rows, "w": max(rows, columns), "span": draft.capacity, "r": width, "k": width}
    engines = DraftEngines(
        fuse=backend.engine("fuse", buffers, {"n": max(limits.tree_nodes, limits.prefill_rows), "m": rows}),
        draft=backend.engine("draft", {**buffers, **cache.tensors()}, sizes),
        expand=backend.engine("expand", buffers, {"b": width, "k": width, "m": rows, "w": columns, "p": pool, "v": columns, "q": pool}),
        tree=backend.engine("tree", buffers, {"p": pool, "n": limits.tree_nodes}),
    )
    return EagleDrafter(engines, cache, draft, limits, memory, buffers)


def check_tree_size(manifest: Manifest, spec: TreeSpec) -> None:
    """Raises EngineDirError if the engines have no optimization profile for trees of this many nodes."""
    if manifest.tensorrt is not None and spec.nodes not in manifest.tree_sizes:
        sizes = ", ".join(map(str, manifest.tree_sizes))
        raise EngineDirError(
            f"the engines have no profile for trees of {spec.nodes} nodes, only for {sizes} — choose one of these, or export with "
            f"--tree-sizes {','.join(map(str, sorted({*manifest.tree_sizes, spec.nodes})))}"
        )
