"""Policy networks on the backend that runs the rest: a small engine each."""

from __future__ import annotations

import numpy as np

from policy import Net

from .backend import Backend


def load_net(backend: Backend, graph: str) -> Net:
    """The network x [1, F] -> logits [1, A], which are valid until the next call. Raises EngineDirError, and when asked EngineFailure."""
    call = backend.engine(graph, {}, {}).prepare()
    state = call.inputs["x"]

    def net(x: np.ndarray) -> np.ndarray:
        state[...] = x
        call.run()
        return call.outputs["logits"]

    return net
