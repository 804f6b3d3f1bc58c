"""Loads policies for a Decoder: checks whether the tuning is valid on this machine, loads networks, and builds policies by name."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from policy import PLAIN, Net, Policy, TreeSpec

from ..backends.base import Backend
from ..backends.cpu.processor import processor_name
from ..drafters.registry import DrafterKind
from ..errors import EngineDirError
from ..manifest.schema import Manifest
from ..manifest.tuning import Tuning
from .registry import POLICIES, PolicyContext

_MAX_DEVICE_NODES = 32  # of the default tree on a GPU; EAGLE-3's own default tree is about as large

_log = logging.getLogger("resps")


class Policies:
    """The policies of one Decoder, built on first use and then kept, because a watchdog's verdict holds for later requests. Sampled
    requests have their own, if the tuning has."""

    def __init__(self, context: PolicyContext) -> None:
        self._context = context
        self._built: dict[tuple[str, bool], Policy] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The available ones: plain decoding, a fixed tree, and the tuned ones. With several lanes the cost model needs no tuning, and
        there may be a table, which with one lane is a fixed tree."""
        tuning, several = self._context.tuning, self._context.lanes > 1
        table = ("table",) if several and tuning and tuning.table else ()
        cost_model = ("cost-model",) if several or (tuning and tuning.cost_model) else ()
        return ("none", "fixed", *table, *cost_model, *(tuning.learned if tuning else ()))

    def get(self, name: str | None, temperature: float = 0.0) -> Policy:
        """The policy with this name [default: the tuned one, else a fixed tree] for requests of this temperature. Raises EngineDirError for
        one that was not tuned."""
        context, whole = self._context, self._context.tuning
        tuning = whole and whole.for_temperature(temperature)
        if tuning is not whole:
            assert tuning is not None
            context = replace(context, tuning=tuning, fixed_tree=TreeSpec(*tuning.static))
        name = name or (tuning.policy if tuning else "fixed")
        key = name, tuning is not whole
        if key not in self._built:
            policy = POLICIES[name].make(name, context) if name in POLICIES else None
            if policy is None:
                raise EngineDirError(f"the policy {name} has not been tuned for this engine on this machine — resps-tune --engine-dir DIR")
            self._built[key] = policy
        return self._built[key]


def default_tree(drafter: DrafterKind, manifest: Manifest) -> TreeSpec:
    """The fixed tree of a drafter, a precision and a device without a tuning."""
    if manifest.tensorrt is None:
        return TreeSpec(*(drafter.quantized_tree if manifest.quantized else drafter.tree))
    nodes = max((size for size in manifest.tree_sizes if size <= _MAX_DEVICE_NODES), default=min(manifest.tree_sizes))
    return TreeSpec(nodes, *drafter.device_shape) if nodes > 1 and drafter.device_shape[0] else PLAIN


def tuned_here(manifest: Manifest, threads: int) -> Tuning | None:
    """The directory's tuning if it is valid here: for this engine, and portable or for this machine and number of threads. None if absent
    or not valid (logs a warning)."""
    tuning = manifest.tuning
    if tuning is None:
        return None
    if tuning.engine != manifest.engine_id:
        _log.warning("the policy was tuned for another engine, so a fixed tree is used — tune it for this one: resps-tune")
        return None
    names = processor_name(), processor_name().partition(" (family")[0]  # tunings of earlier versions have the second
    if not tuning.portable and (tuning.machine not in names or tuning.threads != threads):
        _log.warning(
            "the policy was tuned on %s with %d threads, this is %s with %d, so a fixed tree is used — tune it here: resps-tune",
            tuning.machine, tuning.threads, processor_name(), threads,
        )  # fmt: skip
        return None
    return tuning


def load_net(backend: Backend, graph: str) -> Net:
    """The network of ``graph``: float32 [1, F] -> logits [1, A], valid until the next call. Raises EngineDirError; calls of the network
    raise EngineFailure."""
    call = backend.engine(graph, {}, {}).prepare()
    state = call.inputs["x"]

    def net(x: np.ndarray) -> np.ndarray:
        state[...] = x
        call.run()
        return call.outputs["logits"]

    return net
