"""manifest.json: the contract between export and runtime, and the only thing the runtime believes.

The dataclasses below *are* the file, key for key. A directory that has a manifest is a checked engine: the exporter writes it last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EngineDirError
from .graphs import FILE_NAME as FILE_NAME
from .graphs import File as File
from .graphs import Graph as Graph
from .graphs import Tensor as Tensor
from .graphs import sha256_of as sha256_of
from .manifest_check import BACKENDS as BACKENDS
from .manifest_check import check_contract, check_files
from .tuning import Tuning as Tuning
from .typed_json import Malformed, decode

SCHEMA = 4


@dataclass(frozen=True)
class Model:
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
    """The EAGLE-3 draft. ``vocab``: its own, whose target ids hash to ``tokens_sha256``; ``trained_length``: positions it was trained for;
    ``capacity``: cache slots, the target's context and the largest tree; ``check``: against the reference, as the target's."""

    name: str
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
class Controller:
    """The policy network. ``actions``: (nodes, depth, width) of each of its outputs, in order. ``trained`` is false for random weights,
    which only show that everything around them works."""

    name: str
    trained: bool
    actions: tuple[tuple[int, int, int], ...]


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
    shape: Model
    limits: Limits
    tree_sizes: tuple[int, ...]
    tokens: Tokens
    draft: Draft | None
    policy: Controller | None
    tensorrt: TensorRT | None
    tuning: Tuning | None
    graphs: Mapping[str, Graph]
    files: Mapping[str, File]
    check: Check
    built_with: Mapping[str, str]
    source: Source
    rebuild: str

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


def find_engine_dir(path: Path) -> Path:
    """``path`` itself, or the one engine directory right below it. Raises EngineDirError."""
    if not path.is_dir():
        raise EngineDirError(f"there is no engine directory {path} — make one: resps-export --model smollm2-135m")
    if (path / FILE_NAME).is_file():
        return path
    found = sorted(child for child in path.iterdir() if not child.name.startswith(".") and (child / FILE_NAME).is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise EngineDirError(f"{path} holds several engine directories — choose one: {', '.join(map(str, found))}")
    raise EngineDirError(f"{path} has no {FILE_NAME}: it is not a finished engine directory — make one: resps-export --model NAME")


def load_manifest(directory: Path, *, verify: bool = True, backend: str | None = None) -> Manifest:
    """Read and check an engine directory: its manifest, that every file is there and, with ``verify``, the hash of every one that
    ``backend`` (default: the one it was made for) reads. Raises EngineDirError."""
    manifest = read_manifest(directory)
    check_files(directory, manifest, verify, backend or manifest.backend)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """manifest.json alone: schema, every key, and what must hold between them. Raises EngineDirError."""
    file = directory / FILE_NAME
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineDirError(f"cannot read {file}: {error} — export again: resps-export --model NAME --force") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise EngineDirError(f"{file} has schema {schema!r}, this version reads {SCHEMA} — export again: resps-export --model NAME --force")
    try:
        manifest: Manifest = decode(Manifest, data, "manifest")
        check_contract(manifest)
    except Malformed as problem:
        raise EngineDirError(f"{file} is malformed: {problem} — export again: resps-export --model NAME --force") from None
    return manifest
