"""Whether a tuning can be used with an engine: its networks read what the target gives, its trees are among the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policy import PLAIN, TreeSpec, inputs
from policy.resps import Action

from .schema import Manifest
from .tuning import LearnedPolicy, Tuning


@dataclass(frozen=True)
class PolicyLimits:
    """What an engine offers to policies. ``features``: numbers of the target's features at one token; ``largest``: bounds of every tree;
    ``sizes``: the numbers of nodes that the engine was built for, None where any may be verified. ``rotated``: whether the features are."""

    features: int
    largest: Action
    sizes: tuple[int, ...] | None
    rotated: bool = False


def policy_limits(manifest: Manifest) -> PolicyLimits | None:
    """None for an engine without a draft, which has no use for a tuning."""
    draft, features = manifest.draft, manifest.graphs["target"].outputs["features"].shape[-1]
    if draft is None or not isinstance(features, int):
        return None
    sizes = manifest.tree_sizes if manifest.tensorrt else None
    return PolicyLimits(features, (manifest.limits.tree_nodes, draft.max_depth, draft.max_width), sizes, manifest.rotated)


def misfit(tuning: Tuning, limits: PolicyLimits) -> str | None:
    """Why ``tuning``, whose networks read known inputs, cannot be used within ``limits``; None if it can."""
    chosen = [tuning.static, *tuning.table, *(tree for learned in tuning.learned.values() for tree in _trees(learned))]
    bounds = [tuning.cost_model.tree] if tuning.cost_model else []  # the cost model chooses among the engine's sizes by itself
    if tuning.sampled:
        chosen.append(tuning.sampled.static)
        bounds.append(tuning.sampled.cost_model.tree)
    for tree in (*chosen, *bounds):
        try:
            TreeSpec(*tree)
        except ValueError as problem:
            return str(problem)
        if any(size > most for size, most in zip(tree, limits.largest, strict=True)):
            return f"it has the tree {_text(tree)}, the engine's trees go up to {_text(limits.largest)}"
    sizes = {nodes for nodes, _, _ in chosen}
    sizes |= {size for learned in tuning.learned.values() if learned.fast and learned.fast.size for size in learned.fast.sizes}
    if limits.sizes is not None and not sizes <= set(limits.sizes):
        others = sorted(sizes - set(limits.sizes))
        return f"it has trees of {_text(others)} nodes, the engine is built for trees of {_text(limits.sizes)}"
    for learned in tuning.learned.values():
        tree_bounds = TreeSpec(*learned.fast.tree) if learned.fast else PLAIN
        for net, _, _ in learned.nets():
            if "target_features" in net.inputs and tuning.rotated != limits.rotated:
                return f"its network {net.graph} reads features that were rotated in another way (resps-export --no-rotation)"
            given = inputs.width(net.inputs, limits.features, tree_bounds)
            found = tuning.graphs[net.graph].inputs["x"].shape
            if found != (1, given):
                return f"its network {net.graph} reads {found[-1]} numbers, the engine gives {given}"
    return None


def _trees(learned: LearnedPolicy) -> Iterator[Action]:
    """Every tree that it may choose, cut ones left out."""
    if learned.slow:
        yield from learned.slow.actions
    if learned.fast:
        yield learned.fast.tree


def _text(numbers: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, numbers))
