"""The policy that a Decoder uses: the one that was tuned on this machine, or a fixed tree."""

from __future__ import annotations

import logging

from policy import PLAIN, CostModel, FixedPolicy, Policy, TreeSpec, Watched

from .cpu import processor_name
from .errors import EngineDirError
from .manifest import Manifest, Tuning

POLICIES = ("none", "fixed", "cost-model")
DEFAULT_TREES = {"eagle": TreeSpec(5, 3, 2), "ngram": TreeSpec(6, 5, 2), "none": PLAIN}
QUANTIZED_TREE = TreeSpec(3, 2, 2)  # for "eagle" beside int8 and int4, where a row more costs more (docs/benchmarks.md)
GPU_TREE = (7, 8)  # depth and width of "eagle" with TensorRT: near EAGLE-3's own, a row costs little there

_log = logging.getLogger("resps")


def default_draft(manifest: Manifest) -> str:
    """What proposes trees when nothing else is asked for."""
    return "eagle" if manifest.draft else "ngram"


def default_tree(draft: str, manifest: Manifest) -> TreeSpec:
    """What is grown when nothing was tuned and nothing else is asked for."""
    if manifest.tensorrt is not None and draft != "none":
        nodes = max((size for size in manifest.tree_sizes if size <= 32), default=min(manifest.tree_sizes))
        return TreeSpec(nodes, *(GPU_TREE if draft == "eagle" else (5, 2))) if nodes > 1 else PLAIN
    return QUANTIZED_TREE if draft == "eagle" and manifest.precision in ("int8", "int4") else DEFAULT_TREES[draft]


def make_policy(name: str | None, draft: str, manifest: Manifest, threads: int) -> Policy:
    """``name``: one of POLICIES [default: the one that was tuned]. What was tuned on another machine is not used, which is said once.
    Raises EngineDirError for a policy that has not been tuned."""
    tuning = tuned_here(manifest, threads) if draft == "eagle" else None
    name = name or (tuning.policy if tuning else "fixed")
    if name == "none":
        return FixedPolicy(PLAIN)
    tree = TreeSpec(*tuning.static) if tuning else default_tree(draft, manifest)
    if name == "fixed":
        return FixedPolicy(tree)
    if tuning is None or tuning.cost_model is None:
        raise EngineDirError(f"the policy {name} has not been tuned for this engine on this machine — resps-tune --engine-dir DIR")
    sizes = manifest.tree_sizes if manifest.tensorrt else None
    return Watched(CostModel(tuning.cost_model, tuning.surface, sizes), tree)


def trees_of(policy: Policy) -> list[TreeSpec]:
    """The largest trees that a policy is known to ask for, to be ready for; none where only it knows."""
    if isinstance(policy, FixedPolicy):
        return [policy.spec]
    if isinstance(policy, CostModel):
        return [TreeSpec(*policy.calibration.tree)]
    return [policy.static, *trees_of(policy.policy)] if isinstance(policy, Watched) else []


def tuned_here(manifest: Manifest, threads: int) -> Tuning | None:
    """What was tuned, if it was on this machine with as many threads."""
    tuning = manifest.tuning
    if tuning is None:
        return None
    if (tuning.machine, tuning.threads) != (processor_name(), threads):
        _log.warning(
            "the policy was tuned on %s with %d threads, this is %s with %d: a fixed tree is used — resps-tune tunes it for here",
            tuning.machine, tuning.threads, processor_name(), threads,
        )  # fmt: skip
        return None
    return tuning
