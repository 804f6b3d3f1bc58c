"""The policy that a Decoder uses: the one that was tuned on this machine, or a fixed tree."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from policy import PLAIN, ActionPersistence, CostModel, FixedPolicy, Ltd, Net, Policy, Resps, TreeSpec, Watchdog, watch

from ..backends.base import Backend
from ..backends.cpu.processor import processor_name
from ..errors import EngineDirError
from ..manifest.schema import Manifest
from ..manifest.tuning import LearnedPolicy, RespsConfig, Tuning

POLICIES = ("none", "fixed", "cost-model", "resps", "ltd", "resps+ltd")
DEFAULT_TREES = {"eagle": TreeSpec(5, 3, 2), "ngram": TreeSpec(6, 5, 2), "none": PLAIN}
QUANTIZED_TREE = TreeSpec(3, 2, 2)  # for "eagle" beside int8 and int4, where a row more costs more (docs/benchmarks.md)
GPU_TREE = (7, 8)  # depth and width of "eagle" with TensorRT: near EAGLE-3's own, a row costs little there

LoadNet = Callable[[str], Net]
"""Graph name -> the network, ready to be asked."""

_log = logging.getLogger("resps")


def default_tree(draft: str, manifest: Manifest) -> TreeSpec:
    """What is grown when nothing was tuned and nothing else is asked for."""
    eagle = draft.startswith("eagle")  # with bets on repeated text or without
    if manifest.tensorrt is not None and draft != "none":
        nodes = max((size for size in manifest.tree_sizes if size <= 32), default=min(manifest.tree_sizes))
        return TreeSpec(nodes, *(GPU_TREE if eagle else (5, 2))) if nodes > 1 else PLAIN
    return QUANTIZED_TREE if eagle and manifest.precision in ("int8", "int4") else DEFAULT_TREES["eagle" if eagle else draft]


def make_policy(name: str | None, tuning: Tuning | None, default: TreeSpec, sizes: tuple[int, ...] | None, load: LoadNet) -> Policy:
    """``name``: one of POLICIES [default: the one that was tuned]. ``tuning``: what holds here, see `tuned_here`; ``default``: the fixed
    tree without it; ``sizes``: trees that may be verified, where not every size may. Raises EngineDirError for a policy that has not been
    tuned."""
    name = name or (tuning.policy if tuning else "fixed")
    if name == "none":
        return FixedPolicy(PLAIN)
    tree = TreeSpec(*tuning.static) if tuning else default
    if name == "fixed":
        return FixedPolicy(tree)
    if tuning and name == "cost-model" and tuning.cost_model:
        return watch(CostModel(tuning.cost_model, tuning.latency, sizes), tree, tuning.latency)
    if tuning and name in tuning.learned:
        return watch(_learned(tuning.learned[name], load), tree, tuning.latency)
    raise EngineDirError(f"the policy {name} has not been tuned for this engine on this machine — resps-tune --engine-dir DIR")


def _learned(found: LearnedPolicy, load: LoadNet) -> Policy:
    slow = _held(found.slow, load) if found.slow else None
    if found.fast is None:
        assert slow is not None
        return slow
    fast = found.fast
    depth, size = (load(graph) if graph else None for graph in (fast.depth, fast.size))
    return Ltd(depth, size, fast.tree, fast.every, fast.sizes, slow)


def _held(chooser: RespsConfig, load: LoadNet) -> ActionPersistence:
    return ActionPersistence(Resps(load(chooser.graph), chooser.actions, chooser.margin, state=chooser.state), chooser.hold)


def trees_of(policy: Policy) -> list[TreeSpec]:
    """The largest trees that a policy is known to ask for, to be ready for; none where only it knows."""
    if isinstance(policy, FixedPolicy):
        return [policy.spec]
    if isinstance(policy, CostModel):
        return [TreeSpec(*policy.calibration.tree)]
    if isinstance(policy, Resps):
        return list(policy.specs)
    if isinstance(policy, Ltd):
        return trees_of(policy.slow) if policy.slow else [TreeSpec(*policy.tree)]
    if isinstance(policy, ActionPersistence):
        return trees_of(policy.policy)
    return [policy.static, *trees_of(policy.policy)] if isinstance(policy, Watchdog) else []


def tuned_here(manifest: Manifest, threads: int) -> Tuning | None:
    """What was tuned, if it was for this engine on this machine with as many threads, or is portable."""
    tuning = manifest.tuning
    if tuning is None:
        return None
    if tuning.engine != manifest.engine_id:
        _log.warning("the policy was tuned for another engine: a fixed tree is used — resps-tune tunes it for this one")
        return None
    if not tuning.portable and (tuning.machine, tuning.threads) != (processor_name(), threads):
        _log.warning(
            "the policy was tuned on %s with %d threads, this is %s with %d: a fixed tree is used — resps-tune tunes it for here",
            tuning.machine, tuning.threads, processor_name(), threads,
        )  # fmt: skip
        return None
    return tuning


def load_net(backend: Backend, graph: str) -> Net:
    """The network x [1, F] -> logits [1, A], which are valid until the next call. Raises EngineDirError, and when asked EngineFailure."""
    call = backend.engine(graph, {}, {}).prepare()
    state = call.inputs["x"]

    def net(x: np.ndarray) -> np.ndarray:
        state[...] = x
        call.run()
        return call.outputs["logits"]

    return net
