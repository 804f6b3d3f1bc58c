"""What is compared: plain decoding, and pairs of a draft and a policy or fixed tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policy import PLAIN, FixedPolicy, Guarded, Policy, TreeSpec, Watchdog, trees_of

from ..decoder import Decoder
from ..drafters.registry import DRAFTERS
from ..errors import BenchError
from ..models import check_tree_size
from .record import BASELINE, ContenderRecord


@dataclass(frozen=True)
class Contender:
    """A policy on one of the Decoders. The policy lives as long as the run and learns from every request, as it would in service. Those of
    one Decoder share what its rounds cost."""

    name: str
    policy: Policy
    decoder: Decoder

    @property
    def record(self) -> ContenderRecord:
        """Its entry in the JSON file, with what is known at this moment."""
        draft = "none" if self.name == BASELINE else self.decoder.draft
        fixed = _unguarded(self.policy)
        tree = str(fixed.spec) if isinstance(fixed, FixedPolicy) else None
        return ContenderRecord(self.name, draft, tree, self.policy.fallback_reason if isinstance(self.policy, Watchdog) else None)

    @property
    def trees(self) -> list[TreeSpec]:
        """Trees that the policy is known to ask for."""
        return list(trees_of(self.policy))


def make_contenders(
    names: Sequence[str], trees: Sequence[TreeSpec], decoders: Sequence[Decoder], temperature: float = 0.0
) -> list[Contender]:
    """Plain decoding first, then each of ``decoders`` (one per draft) with every policy of ``names`` and every tree of ``trees``. Without
    names and trees: the draft's default tree and all tuned policies. Policies are those of requests with this ``temperature``. Names
    contain the draft when there are several Decoders.

    Raises BenchError for unknown names and impossible trees, EngineDirError for an untuned policy or a tree without a profile.
    """
    contenders = [Contender(BASELINE, FixedPolicy(PLAIN), decoders[0])]
    for decoder in decoders:
        policies = dict(named_policies(names, trees, decoder, temperature) if names or trees else _defaults(decoder, temperature))
        prefix = f"{decoder.draft} " if len(decoders) > 1 else ""
        contenders += [Contender(prefix + name, policy, decoder) for name, policy in policies.items() if name != BASELINE]
    return contenders


def named_policies(
    names: Sequence[str], trees: Sequence[TreeSpec], decoder: Decoder, temperature: float = 0.0
) -> Iterator[tuple[str, Policy]]:
    """Each policy of ``names`` and each tree of ``trees``, with its name. Raises BenchError, EngineDirError as `make_contenders`."""
    for name in names:
        try:
            yield name, decoder.policy(name, temperature)
        except ValueError as problem:
            raise BenchError(str(problem)) from None
    for tree in trees:
        yield str(tree), FixedPolicy(_checked(tree, decoder))


def _defaults(decoder: Decoder, temperature: float) -> Iterator[tuple[str, Policy]]:
    """A tuned fixed tree that is plain decoding or the default tree is left out."""
    first = decoder.default_tree
    if first != PLAIN:
        yield str(first), FixedPolicy(first)
    for name in decoder.policies:
        policy = decoder.policy(name, temperature)
        fixed = _unguarded(policy)
        if not isinstance(fixed, FixedPolicy) or fixed.spec not in (PLAIN, first):
            yield name, policy


def _unguarded(policy: Policy) -> Policy:
    return policy.policy if isinstance(policy, Guarded) else policy


def _checked(tree: TreeSpec, decoder: Decoder) -> TreeSpec:
    """Refuse a tree that the decoding loop would cut silently: the table would name a tree that was never drafted."""
    manifest = decoder.manifest
    check_tree_size(manifest, tree)
    limits, model = manifest.limits, manifest.draft if DRAFTERS[decoder.draft].uses_draft_model else None
    if tree.nodes > limits.tree_nodes or (model and (tree.depth > model.max_depth or tree.width > model.max_width)):
        most = f"{limits.tree_nodes} nodes" + (f", depth {model.max_depth}, width {model.max_width}" if model else "")
        raise BenchError(f"the tree {tree} is larger than the engine allows ({most}) — choose a smaller one")
    return tree
