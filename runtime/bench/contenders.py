"""What takes part: plain decoding, policies by name, fixed trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policy import PLAIN, FixedPolicy, Policy, TreeSpec, Watchdog, trees_of

from ..decoder import Decoder
from ..errors import BenchError
from ..models import check_tree_size
from . import record


@dataclass(frozen=True)
class Contender:
    """``policy`` lives as long as the run: what it learns from one request holds for the next, as in service."""

    name: str
    policy: Policy

    @property
    def recorded(self) -> record.ContenderRecord:
        """What is known of it now."""
        tree = str(self.policy.spec) if isinstance(self.policy, FixedPolicy) else None
        return record.ContenderRecord(self.name, tree, self.policy.fallback_reason if isinstance(self.policy, Watchdog) else None)

    @property
    def trees(self) -> list[TreeSpec]:
        """Those that it is known to ask for."""
        return list(trees_of(self.policy))


def make_arms(names: Sequence[str], trees: Sequence[TreeSpec], decoder: Decoder) -> list[Contender]:
    """Plain decoding first, then policies by ``names`` and ``trees``; with neither, the default tree and every policy that was tuned.

    Raises BenchError for names and trees that do not exist here, EngineDirError for an untuned policy or a tree without a profile.
    """
    arms = {record.BASELINE: Contender(record.BASELINE, FixedPolicy(PLAIN))}
    for name in names:
        try:
            arms.setdefault(name, Contender(name, decoder.policy(name)))
        except ValueError as problem:
            raise BenchError(str(problem)) from None
    for tree in trees:
        arms.setdefault(str(tree), Contender(str(tree), FixedPolicy(_possible(tree, decoder))))
    return list(arms.values()) if names or trees else _defaults(decoder)


def _defaults(decoder: Decoder) -> list[Contender]:
    """A fixed tree that another arm has already is left out."""
    first = decoder.default_tree
    arms = [Contender(record.BASELINE, FixedPolicy(PLAIN)), Contender(str(first), FixedPolicy(first))]
    arms += [Contender(name, decoder.policy(name)) for name in decoder.policies if name != record.BASELINE]
    trees = [arm.recorded.tree for arm in arms]
    return [arm for place, arm in enumerate(arms) if trees[place] is None or trees[place] not in trees[:place]]


def _possible(tree: TreeSpec, decoder: Decoder) -> TreeSpec:
    """The loop would cut a larger tree without a word, and the table would name a tree that never grew."""
    manifest = decoder.manifest
    check_tree_size(manifest, tree)
    limits, model = manifest.limits, manifest.draft if decoder.models.eagle else None
    if tree.nodes > limits.tree_nodes or (model and (tree.depth > model.max_depth or tree.width > model.max_width)):
        most = f"{limits.tree_nodes} nodes" + (f", depth {model.max_depth}, width {model.max_width}" if model else "")
        raise BenchError(f"the tree {tree} is larger than the engine allows ({most}) — choose a smaller one")
    return tree
