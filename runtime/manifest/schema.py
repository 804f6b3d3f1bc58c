"""manifest.json: the contract between export and runtime, and the only thing the runtime believes.

The dataclasses below *are* the file, key for key. A directory that has a manifest is a checked engine: the exporter writes it last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .graphs import File, Graph
from .tuning import Tuning

SCHEMA = 6
BACKENDS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class TargetShape:
    """Sizes of the target. ``captured_layers``: whose incoming residual stream ``features`` holds."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    captured_layers: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """``context``: most tokens of prompt and answer. ``capacity``: cache slots, context plus one pass. ``tree_nodes``: largest tree.
    ``prefill_rows``: prompt tokens per pass. ``span_step``: the cache is read up to a multiple of this many slots."""

    context: int
    capacity: int
    tree_nodes: int
    prefill_rows: int
    span_step: int


@dataclass(frozen=True)
class Tokens:
    """``stop``: token ids that end an answer."""

    tokenizer: str
    chat_template: str | None
    stop: tuple[int, ...]
    bos: int | None


@dataclass(frozen=True)
class Check:
    """The exported graph against a reference computation on the unquantized weights, on ``rows`` tree rows."""

    rows: int
    max_abs_logit_diff: float
    mean_kl: float
    same_argmax: float


@dataclass(frozen=True)
class Draft:
    """The EAGLE-3 draft. ``weights_sha256``: of its checkpoint's weight files, by which a tuning knows its draft; ``vocab``: its own, whose
    target ids hash to ``tokens_sha256``; ``trained_length``: positions it was trained for; ``capacity``: cache slots, the target's context
    and the largest tree; ``check``: against the reference, as the target's."""

    name: str
    weights_sha256: str
    precision: str
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    tokens_sha256: str
    trained_length: int
    capacity: int
    max_depth: int
    max_width: int
    check: Check


@dataclass(frozen=True)
class TensorRT:
    """What the plans were built with and for. ``flavour``: the Python module, tensorrt or tensorrt_rtx. ``compute_capabilities``: GPUs they
    run on, as "8.9"; ``gpu``: name of the GPU they were tuned on, if there was one."""

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None


@dataclass(frozen=True)
class Source:
    """What was exported with which options: equal means up to date."""

    weights: str
    files: tuple[tuple[str, int, int], ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """An engine directory. ``rebuild`` is the command that makes it anew."""

    schema: int
    model: str
    precision: str
    backend: str
    shape: TargetShape
    limits: Limits
    tree_sizes: tuple[int, ...]
    tokens: Tokens
    draft: Draft | None
    tensorrt: TensorRT | None
    tuning: Tuning | None
    graphs: Mapping[str, Graph]
    files: Mapping[str, File]
    check: Check
    built_with: Mapping[str, str]
    source: Source
    rebuild: str

    @property
    def quantized(self) -> bool:
        """Whether weights are integers, so that a row more costs more of a pass."""
        return self.precision in ("int8", "int4")

    @property
    def engine_id(self) -> str:
        """Short hash of every file that decides what is decoded."""
        hashes = {name: file.sha256 for name, file in self.files.items()}
        return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]

    def graph(self, name: str) -> Graph:
        """One of the engine's own graphs, or one that was tuned for it."""
        return self.graphs[name] if name in self.graphs or self.tuning is None else self.tuning.graphs[name]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"
