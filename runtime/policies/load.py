"""The policies of one Decoder, over what was tuned for this machine."""

from __future__ import annotations

import logging

import numpy as np

from policy import PLAIN, Net, Policy, TreeSpec

from ..backends.base import Backend
from ..backends.cpu.processor import processor_name
from ..drafters.registry import DrafterKind
from ..errors import EngineDirError
from ..manifest.schema import Manifest
from ..manifest.tuning import Tuning
from .registry import POLICIES, PolicySetting

_DEVICE_NODES = 32  # of the default tree on a GPU, at most: near EAGLE-3's own

_log = logging.getLogger("resps")


class Policies:
    """Makes each policy when it is first asked for and then keeps it: what one learns from a request holds for the next."""

    def __init__(self, setting: PolicySetting) -> None:
        self._setting = setting
        self._made: dict[str, Policy] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that can be had here: plain decoding, a fixed tree, and what was tuned."""
        tuning = self._setting.tuning
        return ("none", "fixed", *(("cost-model",) if tuning and tuning.cost_model else ()), *(tuning.learned if tuning else ()))

    def get(self, name: str | None) -> Policy:
        """The policy of that name [default: as tuned, else a fixed tree]. Raises EngineDirError for one that has not been tuned."""
        tuning = self._setting.tuning
        name = name or (tuning.policy if tuning else "fixed")
        if name not in self._made:
            policy = POLICIES[name].make(name, self._setting) if name in POLICIES else None
            if policy is None:
                raise EngineDirError(f"the policy {name} has not been tuned for this engine on this machine — resps-tune --engine-dir DIR")
            self._made[name] = policy
        return self._made[name]


def default_tree(drafter: DrafterKind, manifest: Manifest) -> TreeSpec:
    """The tree that is grown when nothing was tuned and nothing else is asked for."""
    if manifest.tensorrt is None:
        return TreeSpec(*(drafter.quantized_tree if manifest.quantized else drafter.tree))
    nodes = max((size for size in manifest.tree_sizes if size <= _DEVICE_NODES), default=min(manifest.tree_sizes))
    return TreeSpec(nodes, *drafter.device_shape) if nodes > 1 and drafter.device_shape[0] else PLAIN


def tuned_here(manifest: Manifest, threads: int) -> Tuning | None:
    """What was tuned, if it was for this engine on this machine with as many threads, or is portable; else None, with a warning."""
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
