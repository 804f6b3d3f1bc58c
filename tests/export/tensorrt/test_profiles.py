"""Every call of the runtime has an optimization profile, and takes the intended one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.tuning.replay.grid import gpu_actions
from policy import TreeSpec, default_latency
from runtime.backends.base import CacheLayout
from runtime.backends.cpu.kv import KVCache
from runtime.backends.cpu.memory import HostMemory
from runtime.decoding.sampling import TargetOutput
from runtime.decoding.tree import DeviceTree, Tree
from runtime.drafters.eagle import EagleDrafter
from runtime.drafters.registry import DRAFTERS
from runtime.manifest.graphs import Graph
from runtime.manifest.schema import Manifest
from runtime.models import load_models
from runtime.sampling_params import SamplingParams
from tests.support.tensorrt_exports import GRAPHS, SIZES

pytest.importorskip("tensorrt_rtx")


class DeviceLike(HostMemory):
    """Host memory that claims to be a device's, so that the runtime makes the calls of a device."""

    on_host = False


class Recorder:
    """An engine that computes nothing and records the sizes of every call."""

    def __init__(self, name: str, graph: Graph, asked: set[tuple[str, tuple[tuple[str, int], ...]]]) -> None:
        self._name, self._graph, self._asked = name, graph, asked

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> Any:
        self._asked.add((self._name, tuple(sizes.items())))

        def tensors(side: Mapping[str, Any]) -> dict[str, np.ndarray]:
            small = {name: each for name, each in side.items() if not name.startswith(("past.", "present.", "uniforms"))}
            return {
                name: np.zeros([sizes[dim] if isinstance(dim, str) else dim for dim in each.shape], each.dtype)
                for name, each in small.items()
            }

        return SimpleNamespace(inputs=tensors(self._graph.inputs), outputs=tensors(self._graph.outputs), run=lambda: None)

    def close(self) -> None:
        """Nothing to free."""


class Recording:
    """A backend of Recorders."""

    def __init__(self, manifest: Manifest) -> None:
        self.memory, self._manifest = DeviceLike(), manifest
        self.asked: set[tuple[str, tuple[tuple[str, int], ...]]] = set()

    def engine(self, name: str, shared: Mapping[str, Any], limits: Mapping[str, int]) -> Recorder:
        return Recorder(name, self._manifest.graphs[name], self.asked)

    def cache(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int) -> KVCache:
        return KVCache(layers, keys, values, capacity, self._manifest.limits.span_step)

    def close(self) -> None:
        """Nothing to free."""


def first_profile(graph: Graph, sizes: Mapping[str, int]) -> int | None:
    """The choice of runtime/backends/cuda/tensorrt.py."""
    for index, ranges in enumerate(graph.profiles):
        if all(low <= sizes[dim] <= high for dim, (low, _, high) in ranges.items()):
            return index
    return None


def test_every_call_of_the_runtime_has_a_profile(manifest: Manifest) -> None:
    assert manifest.draft is not None
    specs = [TreeSpec(*action) for action in gpu_actions(manifest.tree_sizes, manifest.draft)]
    specs += [TreeSpec(2, 1, 1), TreeSpec(16, 16, 1), TreeSpec(3, 2, 2), TreeSpec(16, 16, 16), TreeSpec(7, 6, 5)]
    backend = Recording(manifest)
    models = load_models(backend, manifest, DRAFTERS["eagle"], specs, default_latency(False), specs[0])
    assert isinstance(models.drafter, EagleDrafter)
    for nodes in range(1, manifest.limits.tree_nodes + 1):  # trees are cut near the end of the context
        models.target.verify(DeviceTree(nodes) if nodes > 1 else Tree.chain([1]))
    for count in (*range(1, 19), 40, 63):
        models.target.cache.truncate(0)
        models.drafter.begin()
        for chunk, scores in models.target.prefill([1] * count):
            models.drafter.extend(chunk, scores, range(len(chunk)))
        for spec in specs:
            models.drafter.draft(1, spec)
            models.drafter.extend([1] * min(spec.depth + 1, spec.nodes), scores, range(min(spec.depth + 1, spec.nodes)))
            if len(models.drafter._waiting) + models.drafter._cache.length > 40:
                break
    sampler = models.make_sampler(SamplingParams(temperature=1.0, seed=0))
    outputs = {"logits": np.zeros((1, 16, manifest.shape.vocab), np.float32)}
    for nodes in range(1, manifest.limits.tree_nodes + 1):
        sampler(TargetOutput(outputs, Tree.chain([1] * nodes), 3, nodes), 0, 4)
    seen = Counter(name for name, _ in backend.asked)
    assert seen.keys() == set(GRAPHS)
    for name, sizes in backend.asked:
        assert first_profile(manifest.graphs[name], dict(sizes)) is not None, (name, sizes)


def test_each_tree_size_and_width_has_its_own_profile(manifest: Manifest) -> None:
    target, draft = manifest.graphs["target"], manifest.graphs["draft"]
    chosen = [first_profile(target, {"n": size, "r": size, "span": 64}) for size in SIZES]
    assert chosen == list(range(len(SIZES)))
    assert first_profile(target, {"n": 128, "r": 1, "span": 128}) == len(SIZES)
    assert first_profile(target, {"n": 17, "r": 17, "span": 64}) is None
    levels = [{"m": width, "w": 1 + width * 3, "span": 64, "r": width, "k": width} for width in (1, 2, 4, 8, 16)]
    assert [first_profile(draft, level) for level in levels] == [0, 1, 2, 3, 4]
    assert first_profile(draft, {"m": 100, "w": 100, "span": 128, "r": 1, "k": 1}) == 5
    for graph in manifest.graphs.values():
        for profile in graph.profiles:
            assert all(1 <= low <= best <= high for low, best, high in profile.values())
    for name, rows in (("target", "n"), ("draft", "m"), ("fuse", "m")):
        assert all(profile[rows][2] > 1 for profile in manifest.graphs[name].profiles)


def test_actions_are_trees_that_exist(manifest: Manifest) -> None:
    """Re-SpS' actions when such an engine is tuned."""
    assert manifest.draft is not None
    actions = gpu_actions(manifest.tree_sizes, manifest.draft)
    assert len(set(actions)) == len(actions) > 8
    for nodes, depth, width in actions:
        assert TreeSpec(nodes, depth, width).nodes in SIZES
        assert depth <= manifest.draft.max_depth
        assert width <= manifest.draft.max_width
    assert gpu_actions((1,), manifest.draft) == ()
    narrow = dataclasses.replace(manifest.draft, max_depth=2, max_width=3)
    assert gpu_actions((2, 8, 64), narrow) == ((2, 1, 3), (8, 2, 3))
