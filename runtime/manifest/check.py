"""What must hold before manifest.json is believed: its numbers fit together, and its files are the ones it was written for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..errors import EngineDirError
from .graphs import FILE_NAME, File, Graph, Tensor, sha256_of
from .onnx_files import external_files
from .schema import BACKENDS, Draft, Manifest, TargetShape
from .tuning import Tuning
from .tuning_fit import misfit, policy_limits
from .typed_json import Malformed

_LARGEST, _LARGEST_TREE, _WIDEST_TREE = 1 << 22, 1 << 12, 1 << 8  # beyond any model; buffers are as large as these say

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


def check_contract(manifest: Manifest) -> None:
    """What the runtime relies on without looking again: graphs, their tensors, limits that fit together. Raises Malformed."""
    needed = _TENSORS | (_DRAFT_TENSORS if manifest.draft else {})
    for name, (inputs, outputs) in needed.items():
        graph = manifest.graphs.get(name)
        if graph is None or not inputs <= graph.inputs.keys() or not outputs <= graph.outputs.keys():
            raise Malformed(f"manifest.graphs.{name} lacks tensors")
    for kind in ("key", "value"):
        _check_cache("target", manifest.graphs["target"].inputs[f"past.0.{kind}"], manifest.shape)
        if manifest.draft:
            _check_cache("draft", manifest.graphs["draft"].inputs[f"past.0.{kind}"], manifest.draft)
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
    draft = manifest.draft
    if draft and not (draft.layers >= 1 <= draft.max_depth <= _LARGEST_TREE and 1 <= draft.max_width <= min(_WIDEST_TREE, draft.vocab)):
        raise Malformed("manifest.draft holds a size that cannot be")
    if draft and limits.context + draft.max_width * (draft.max_depth - 1) > draft.capacity:
        raise Malformed("manifest.draft.capacity is less than context and one tree")
    if manifest.tuning:
        check_tuning(manifest.tuning, manifest.tensorrt is not None)
        if (offered := policy_limits(manifest)) and (problem := misfit(manifest.tuning, offered)):
            raise Malformed(f"manifest.tuning does not fit: {problem}")


def _check_cache(name: str, tensor: Tensor, model: TargetShape | Draft) -> None:
    """Keys and values are [parts, heads, span, width], where a head's width may be divided into parts."""
    sizes = [size if isinstance(size, int) else 0 for size in tensor.shape]
    parts, heads, _, width = sizes if len(sizes) == 4 else (0, 0, 0, 0)
    if heads < 1 or heads != model.kv_heads or parts * width != model.head_dim:
        raise Malformed(f"manifest.graphs.{name} has a cache of {list(tensor.shape)}, which is not this model's")


def _numbers(sizes: TargetShape | Draft) -> list[int]:
    return [value for value in vars(sizes).values() if isinstance(value, int)]


def check_tuning(tuning: Tuning, plans: bool) -> None:
    """Every network that is named is there, with as many outputs as there is to choose from. Raises Malformed."""
    for policy, (net, outputs, _) in ((policy, each) for policy, learned in tuning.learned.items() for each in learned.nets()):
        name, graph = net.graph, tuning.graphs.get(net.graph)
        if graph is None or "x" not in graph.inputs or "logits" not in graph.outputs or (plans and (not graph.plan or not graph.profiles)):
            raise Malformed(f"manifest.tuning.graphs lacks {name} of the policy {policy}")
        if graph.outputs["logits"].shape != (1, outputs):
            raise Malformed(f"manifest.tuning.learned.{policy} has {outputs} actions, {name} gives {graph.outputs['logits'].shape[-1]}")
    if missing := [name for name in _files_of(tuning.graphs) if name not in tuning.files]:
        raise Malformed(f"manifest.tuning names {missing[0]!r} without its hash")


def check_files(directory: Path, manifest: Manifest, verify: bool, backend: str) -> None:
    """Every file is listed, there, inside and of its size; with ``verify``, those that ``backend`` reads have their hash; and graphs read
    nothing else. Raises EngineDirError."""
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
        for name in _files_of(manifest.graphs, plans=False):
            _check_graph(directory, name, manifest.files, f"export again: {remedy}")
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
            for name in _files_of(tuning.graphs, plans=False):
                _check_graph(directory, name, tuning.files, f"tune again: resps-tune --engine-dir {directory}")


def _check_graph(directory: Path, name: str, known: Mapping[str, File], remedy: str) -> None:
    """Weights beside a graph are files of the manifest, too."""
    try:
        strange = sorted(external_files((directory / name).read_bytes()) - set(known))
    except Malformed as problem:
        raise EngineDirError(f"{directory / name} is no ONNX graph: {problem} — {remedy}") from None
    if strange:
        raise EngineDirError(f"{directory / name} reads {strange[0]!r}, which {FILE_NAME} does not list — {remedy}")


def _files_of(graphs: Mapping[str, Graph], plans: bool = True) -> list[str]:
    return [name for graph in graphs.values() for name in (graph.file, graph.fused, graph.plan if plans else None) if name]


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
