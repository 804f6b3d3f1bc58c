"""Lossless speculative decoding over an engine directory. Start with ``Decoder``.

Importing this package loads nothing heavy: no inference engine and no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoder import Decoder
    from .decoding.cycle import CycleEvent
    from .decoding.logprobs import TokenLogprob
    from .decoding.stats import Stats
    from .decoding.totals import Totals
    from .errors import DecoderBusy, DecoderClosed, EngineDirError, EngineFailure, ParameterError, PromptError, RespsError
    from .request import Chunk
    from .sampling_params import Constraint, SamplingParams
    from .stream import Result, Stream

_MODULES = {
    "Chunk": "request",
    "Constraint": "sampling_params",
    "CycleEvent": "decoding.cycle",
    "Decoder": "decoder",
    "DecoderBusy": "errors",
    "DecoderClosed": "errors",
    "EngineDirError": "errors",
    "EngineFailure": "errors",
    "ParameterError": "errors",
    "PromptError": "errors",
    "RespsError": "errors",
    "Result": "stream",
    "SamplingParams": "sampling_params",
    "Stats": "decoding.stats",
    "Stream": "stream",
    "TokenLogprob": "decoding.logprobs",
    "Totals": "decoding.totals",
}

__all__ = [
    "Chunk",
    "Constraint",
    "CycleEvent",
    "Decoder",
    "DecoderBusy",
    "DecoderClosed",
    "EngineDirError",
    "EngineFailure",
    "ParameterError",
    "PromptError",
    "RespsError",
    "Result",
    "SamplingParams",
    "Stats",
    "Stream",
    "TokenLogprob",
    "Totals",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
