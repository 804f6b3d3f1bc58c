"""What takes part: plain decoding, policies by name, fixed trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from policy import PLAIN, FixedPolicy, Policy, TreeSpec, Watched

from ..backend import expect_tree_size
from ..errors import BenchError, EngineDirError
from ..manifest import Manifest
from ..tuned import POLICIES, default_tree, make_policy, trees_of, tuned_here
from . import record


@dataclass(frozen=True)
class Arm:
    """``policy`` lives as long as the run: what it learns from one request holds for the next, as in service."""

    name: str
    policy: Policy

    @property
    def recorded(self) -> record.Arm:
        """What is known of it now."""
        tree = str(self.policy.spec) if isinstance(self.policy, FixedPolicy) else None
        return record.Arm(self.name, tree, self.policy.pinned if isinstance(self.policy, Watched) else None)

    @property
    def trees(self) -> list[TreeSpec]:
        """Those that it is known to ask for."""
        return trees_of(self.policy)


def make_arms(names: Sequence[str], trees: Sequence[TreeSpec], draft: str, manifest: Manifest, threads: int) -> list[Arm]:
    """Plain decoding first, then ``names`` (of POLICIES) and ``trees``; with neither, the default tree and every policy that was tuned.

    Raises BenchError for names and trees that do not exist here, EngineDirError for an untuned policy or a tree without a profile.
    """
    if draft == "eagle":  # asked once, because it warns of a tuning that is not for this machine
        manifest = replace(manifest, tuning=tuned_here(manifest, threads))
    for name in names:
        if name not in POLICIES:
            raise BenchError(f"unknown policy {name!r} — choose from {', '.join(POLICIES)}")
    arms = {record.BASELINE: Arm(record.BASELINE, FixedPolicy(PLAIN))}
    for name in names:
        arms.setdefault(name, Arm(name, make_policy(name, draft, manifest, threads)))
    for tree in trees:
        arms.setdefault(str(tree), Arm(str(tree), FixedPolicy(_possible(tree, draft, manifest))))
    return list(arms.values()) if names or trees else _defaults(draft, manifest, threads)


def _defaults(draft: str, manifest: Manifest, threads: int) -> list[Arm]:
    """A fixed tree that another arm has already is left out."""
    first = default_tree(draft, manifest)
    arms = [Arm(record.BASELINE, FixedPolicy(PLAIN)), Arm(str(first), FixedPolicy(first))]
    for name in POLICIES:
        try:
            arms.append(Arm(name, make_policy(name, draft, manifest, threads)))
        except EngineDirError:  # never tuned
            continue
    trees = [arm.recorded.tree for arm in arms]
    return [arm for place, arm in enumerate(arms) if trees[place] is None or trees[place] not in trees[:place]]


def _possible(tree: TreeSpec, draft: str, manifest: Manifest) -> TreeSpec:
    """The loop would cut a larger tree without a word, and the table would name a tree that never grew."""
    expect_tree_size(manifest, tree)
    limits, model = manifest.limits, manifest.draft if draft == "eagle" else None
    if tree.nodes > limits.tree_nodes or (model and (tree.depth > model.max_depth or tree.width > model.max_width)):
        most = f"{limits.tree_nodes} nodes" + (f", depth {model.max_depth}, width {model.max_width}" if model else "")
        raise BenchError(f"the tree {tree} is larger than the engine allows ({most}) — choose a smaller one")
    return tree
