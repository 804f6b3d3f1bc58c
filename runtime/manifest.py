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

from policy.resps import STATES

from .errors import EngineDirError
from .graphs import File as File
from .graphs import Graph as Graph
from .graphs import Tensor as Tensor
from .onnx_files import external_files
from .tuning import Tuning as Tuning
from .typed_json import Malformed, decode

SCHEMA = 4
FILE_NAME = "manifest.json"
BACKENDS = ("onnxruntime", "tensorrt")
_READ_BYTES = 1 << 20
_LARGEST, _LARGEST_TREE, _WIDEST_TREE = 1 << 22, 1 << 12, 1 << 8  # beyond any model; buffers are as large as these say


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
    """Read and check an engine directory: schema, every key and, with ``verify``, the hash of every file that ``backend`` (default: the
    one it was made for) reads. Raises EngineDirError."""
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
        _check_contract(manifest)
    except Malformed as problem:
        raise EngineDirError(f"{file} is malformed: {problem} — export again: resps-export --model NAME --force") from None
    _check_files(directory, manifest, verify, backend or manifest.backend)
    return manifest


_TENSORS = {
    "target": (
        {"tokens", "depth", "tree_mask", "past", "slots", "rows", "past.0.key", "past.0.value"},
        {"next_token", "logits", "features"},
    ),
    "sample": ({"logits", "temperature", "top_k", "top_p", "uniforms", "depth", "past"}, {"token"}),
}
_DRAFT_TENSORS = {
    "fuse": ({"features", "rows"}, {"hidden"}),
    "draft": (
        {"tokens", "hidden", "depth", "tree_mask", "past", "write", "slots", "rows", "beam", "past.0.key", "past.0.value"},
        {"next_hidden", "log_probs", "candidates"},
    ),
    "expand": (
        {"log_probs", "candidates", "next_hidden", "rows", "beam", "scores", "ids", "mask", "pool_scores", "pool_tokens", "pool_parents"},
        {"tokens", "hidden", "next_scores", "next_ids", "next_mask", "next_pool_scores", "next_pool_tokens", "next_pool_parents"},
    ),
    "tree": ({"pool_scores", "pool_tokens", "pool_parents", "nodes"}, {"tokens", "parent", "depth", "tree_mask"}),
}


def _check_contract(manifest: Manifest) -> None:
    """What the runtime relies on without looking again: graphs, their tensors, limits that fit together."""
    needed = _TENSORS | (_DRAFT_TENSORS if manifest.draft else {})
    for name, (inputs, outputs) in needed.items():
        graph = manifest.graphs.get(name)
        if graph is None or not inputs <= graph.inputs.keys() or not outputs <= graph.outputs.keys():
            raise Malformed(f"manifest.graphs.{name} lacks tensors")
        for kind in ("key", "value"):
            _check_cached(name, graph, f"past.0.{kind}", manifest.draft if name == "draft" else manifest.shape)
    limits = manifest.limits
    if min(limits.context, limits.tree_nodes, limits.prefill_rows, limits.span_step, manifest.shape.layers) < 1:
        raise Malformed("manifest.limits holds a zero")
    sizes = (*dataclasses.astuple(limits), *_numbers(manifest.shape), *(_numbers(manifest.draft) if manifest.draft else ()))
    if max(sizes) > _LARGEST or limits.tree_nodes > _LARGEST_TREE:
        raise Malformed("manifest.limits, shape or draft holds a size that no model has")
    if limits.context + limits.tree_nodes > limits.capacity:
        raise Malformed("manifest.limits.capacity is less than context and one tree")
    if manifest.backend not in BACKENDS or (manifest.backend == "tensorrt") != (manifest.tensorrt is not None):
        raise Malformed(f"manifest.backend is {manifest.backend!r}")
    if manifest.tensorrt and any(graph.plan is None or not graph.profiles for graph in manifest.graphs.values()):
        raise Malformed("manifest.graphs has a graph without plan or profiles")
    if manifest.tree_sizes != tuple(sorted(set(manifest.tree_sizes))) or not manifest.tree_sizes or manifest.tree_sizes[0] < 1:
        raise Malformed("manifest.tree_sizes must ascend from 1 or more")
    if manifest.tuning:
        _check_tuning(manifest.tuning, manifest.tensorrt is not None)
    draft = manifest.draft
    if draft and not (draft.layers >= 1 <= draft.max_depth <= _LARGEST_TREE and 1 <= draft.max_width <= min(_WIDEST_TREE, draft.vocab)):
        raise Malformed("manifest.draft holds a size that cannot be")
    if draft and limits.context + draft.max_width * (draft.max_depth - 1) > draft.capacity:
        raise Malformed("manifest.draft.capacity is less than context and one tree")


def _check_cached(name: str, graph: Graph, tensor: str, model: Model | Draft | None) -> None:
    """Keys and values are [1, heads, span, width], however heads are divided."""
    if tensor not in graph.inputs or model is None:
        return
    shape = graph.inputs[tensor].shape
    heads, width = (shape[1], shape[3]) if len(shape) == 4 and shape[0] == 1 else (0, 0)
    if not isinstance(heads, int) or not isinstance(width, int) or heads * width != model.kv_heads * model.head_dim or heads % model.kv_heads:
        raise Malformed(f"manifest.graphs.{name} has {tensor} as {list(shape)}, which is no cache of this model")


def _numbers(sizes: Model | Draft) -> list[int]:
    return [value for value in vars(sizes).values() if isinstance(value, int)]


def _check_tuning(tuning: Tuning, plans: bool) -> None:
    """Every network that is named is there, with as many outputs as there is to choose from."""
    for policy, (name, outputs) in ((policy, net) for policy, learned in tuning.learned.items() for net in learned.nets()):
        graph = tuning.graphs.get(name)
        if graph is None or "x" not in graph.inputs or "logits" not in graph.outputs or (plans and (not graph.plan or not graph.profiles)):
            raise Malformed(f"manifest.tuning.graphs lacks {name} of the policy {policy}")
        if graph.outputs["logits"].shape != (1, outputs):
            raise Malformed(f"manifest.tuning.learned.{policy} has {outputs} actions, {name} gives {graph.outputs['logits'].shape[-1]}")
    for policy, learned in tuning.learned.items():
        if learned.slow and learned.slow.state not in STATES:
            raise Malformed(f"manifest.tuning.learned.{policy} sees {learned.slow.state!r}, which nobody knows")
        if learned.slow and learned.slow.state == "text" and tuning.encoder is None:
            raise Malformed(f"manifest.tuning.learned.{policy} reads text, and manifest.tuning has no encoder")
    if encoder := tuning.encoder:
        graph = tuning.graphs.get(encoder.graph)
        if graph is None or graph.inputs.keys() != {"tokens", "mask"} or "embedding" not in graph.outputs or (plans and not graph.profiles):
            raise Malformed(f"manifest.tuning.graphs lacks the encoder {encoder.graph}")
        if encoder.tokenizer not in tuning.files:
            raise Malformed(f"manifest.tuning names {encoder.tokenizer!r} without its hash")
        if encoder.pieces < 3:
            raise Malformed(f"manifest.tuning.encoder reads {encoder.pieces} word pieces")
    if missing := [name for name in _files_of(tuning.graphs) if name not in tuning.files]:
        raise Malformed(f"manifest.tuning names {missing[0]!r} without its hash")


def _check_files(directory: Path, manifest: Manifest, verify: bool, backend: str) -> None:
    remedy = manifest.rebuild
    used = [*_files_of(manifest.graphs), manifest.tokens.tokenizer]
    unread = (".onnx", ".data") if backend == "tensorrt" else (".plan",)
    used += [manifest.tokens.chat_template] if manifest.tokens.chat_template else []
    for name in used:
        if name not in manifest.files:
            raise EngineDirError(f"{directory / FILE_NAME} names {name!r} without its hash — export again: {remedy}")
    for name, expected in manifest.files.items():
        _check_file(directory, name, expected, verify and not name.endswith(unread), "export", f"export again: {remedy}")
    if backend != "tensorrt":
        for graph in manifest.graphs.values():
            _check_graph(directory, graph.file, manifest.files, f"export again: {remedy}")
    if tuning := manifest.tuning:
        for name, expected in tuning.files.items():
            _check_file(
                directory,
                name,
                expected,
                verify and not name.endswith(unread),
                "tuning",
                f"tune again: resps-tune --engine-dir {directory}",
            )
        if backend != "tensorrt":
            for graph in tuning.graphs.values():
                _check_graph(directory, graph.file, tuning.files, f"tune again: resps-tune --engine-dir {directory}")


def _check_graph(directory: Path, name: str, known: Mapping[str, File], remedy: str) -> None:
    """Weights beside a graph are files of the manifest, too."""
    try:
        strange = sorted(external_files((directory / name).read_bytes()) - set(known))
    except Malformed as problem:
        raise EngineDirError(f"{directory / name} is no ONNX graph: {problem} — {remedy}") from None
    if strange:
        raise EngineDirError(f"{directory / name} reads {strange[0]!r}, which {FILE_NAME} does not list — {remedy}")


def _files_of(graphs: Mapping[str, Graph]) -> list[str]:
    return [name for graph in graphs.values() for name in (graph.file, graph.plan) if name]


def _check_file(directory: Path, name: str, expected: File, verify: bool, made_by: str, remedy: str) -> None:
    if name != Path(name).name or name in (".", ".."):
        raise EngineDirError(f"{directory / FILE_NAME} names a file outside the directory: {name!r} — {remedy}")
    path = directory / name
    if not path.is_file():
        raise EngineDirError(f"{directory} lacks {name} — {remedy}")
    if path.resolve().parent != directory.resolve():
        raise EngineDirError(f"{path} is a link to a place outside the directory — {remedy}")
    if path.stat().st_size != expected.bytes or (verify and sha256_of(path) != expected.sha256):
        raise EngineDirError(f"{path} was changed after the {made_by} — {remedy}")


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in small pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
