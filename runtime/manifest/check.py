"""Checks of a manifest: its numbers must be consistent, and its files must be present, inside the directory and unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..errors import EngineDirError
from .believed import Believed
from .graphs import FILE_NAME, PAGE_SLOTS, File, Graph, Tensor
from .schema import BACKENDS, DFLASH, P_EAGLE, Draft, Manifest, TargetShape
from .tuning import Tuning
from .tuning_fit import misfit, policy_limits
from .typed_json import Malformed

# Larger than any model has. Buffers are allocated by these sizes, so a damaged manifest must not ask for more.
_MAX_SIZE, _MAX_TREE_NODES, _MAX_TREE_WIDTH = 1 << 22, 1 << 12, 1 << 8

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
# A DFlash draft's pass; its block's mask and positions are in the graph.
_BLOCK_TENSORS = {"tokens", "hidden", "past", "slots", "rows", "beam", "past.0.key", "past.0.value"}, {"log_probs", "candidates"}
# Graphs with lanes. A directory without them runs one request at a time.
_OF_ROWS = {"tokens", "positions", "flat", "rows", "past.0.key", "past.0.value"}
_PAGED, _PADDED = {"places", "queries", "attend", "owner", "pages", "counted"}, {"pad", "tree_mask", "past", "slots"}
_LANES_TENSORS = {
    backend: {
        "target_lanes": (_OF_ROWS | form, _TENSORS["target"][1]),
        "draft_lanes": (_OF_ROWS | form | {"hidden", "beam"} | more, _DRAFT_TENSORS["draft"][1]),
    }
    for backend, form, more in (("onnxruntime", _PAGED, set()), ("tensorrt", _PADDED, {"write"}))
}


def check_contract(manifest: Manifest) -> None:
    """Check what the rest of the runtime relies on: graphs, their tensors, and consistent limits. Raises Malformed."""
    needed = _TENSORS | (_draft_tensors(manifest.draft) if manifest.draft else {})
    if manifest.backend not in BACKENDS or (manifest.backend == "tensorrt") != (manifest.tensorrt is not None):
        raise Malformed(f"manifest.backend is {manifest.backend!r}")
    needed |= {name: tensors for name, tensors in _LANES_TENSORS[manifest.backend].items() if name in manifest.graphs}
    for name, (inputs, outputs) in needed.items():
        graph = manifest.graphs.get(name)
        if graph is None or not inputs <= graph.inputs.keys() or not outputs <= graph.outputs.keys():
            raise Malformed(f"manifest.graphs.{name} is missing or lacks tensors")
    for kind in ("key", "value"):
        _check_cache("target", manifest.graphs["target"].inputs[f"past.0.{kind}"], manifest.shape)
        if manifest.draft:
            _check_cache("draft", manifest.graphs["draft"].inputs[f"past.0.{kind}"], manifest.draft)
        for name, model, slots in _with_pages(manifest):
            tensor = manifest.graphs[name].inputs[f"past.0.{kind}"]
            if tensor.shape[1:] != (model.kv_heads, slots, model.head_dim) or (not manifest.tensorrt and tensor.dtype != "float32"):
                raise Malformed(f"manifest.graphs.{name} has a cache of shape {list(tensor.shape)}, which does not fit the model")
    limits, draft = manifest.limits, manifest.draft
    if min(limits.context, limits.tree_nodes, limits.prefill_rows, limits.span_step, manifest.shape.layers) < 1:
        raise Malformed("manifest.limits contains a zero")
    sizes = (*dataclasses.astuple(limits), *_numbers(manifest.shape), *(_numbers(manifest.draft) if manifest.draft else ()))
    if max(sizes) > _MAX_SIZE or limits.tree_nodes > _MAX_TREE_NODES:
        raise Malformed("manifest.limits, shape or draft contains a size that is too large")
    if limits.context + limits.tree_nodes > limits.capacity:
        raise Malformed("manifest.limits.capacity is less than the context plus one tree")
    if manifest.tensorrt:
        if any(graph.plan is None or not graph.profiles for graph in manifest.graphs.values()):
            raise Malformed("manifest.graphs has a graph without plan or profiles")
        if (manifest.tensorrt.lanes > 1) != ("target_lanes" in manifest.graphs):
            raise Malformed(f"manifest.tensorrt.lanes is {manifest.tensorrt.lanes}, which does not fit the graphs")
        for name, _, slots in _with_pages(manifest):
            drafted = _drafted_rows(draft) if draft and name == "draft_lanes" else 0
            _check_passes(name, manifest.graphs[name], manifest.tensorrt.lanes, slots - limits.context - drafted)
    if manifest.tree_sizes != tuple(sorted(set(manifest.tree_sizes))) or not manifest.tree_sizes or manifest.tree_sizes[0] < 1:
        raise Malformed("manifest.tree_sizes must ascend from 1 or more")
    if draft and not (
        draft.layers >= 1 <= draft.max_depth <= _MAX_TREE_NODES and 1 <= draft.max_width <= min(_MAX_TREE_WIDTH, draft.vocab)
    ):
        raise Malformed("manifest.draft contains an impossible size")
    if draft and limits.context + _drafted_rows(draft) > draft.capacity:
        raise Malformed("manifest.draft.capacity is less than the context plus one tree")
    if (
        draft
        and (one := draft.one_pass)
        and not (one.kind in (P_EAGLE, DFLASH) and draft.max_depth <= one.rows <= _MAX_TREE_NODES and one.mask_token < manifest.shape.vocab)
    ):
        raise Malformed("manifest.draft.one_pass is impossible")
    if manifest.tuning:
        check_tuning(manifest.tuning, manifest.tensorrt is not None)
        if (offered := policy_limits(manifest)) and (problem := misfit(manifest.tuning, offered)):
            raise Malformed(f"manifest.tuning does not fit: {problem}")


def _drafted_rows(draft: Draft) -> int:
    """Slots of the draft's cache that hold rows of a tree which are not committed yet."""
    return draft.one_pass.rows if draft.one_pass else draft.max_width * (draft.max_depth - 1)


def _draft_tensors(draft: Draft) -> dict[str, tuple[set[str], set[str]]]:
    if draft.one_pass is None:
        return _DRAFT_TENSORS
    return {"fuse": _DRAFT_TENSORS["fuse"], "draft": _BLOCK_TENSORS if draft.one_pass.kind == DFLASH else _DRAFT_TENSORS["draft"]}


def _check_cache(name: str, tensor: Tensor, model: TargetShape | Draft) -> None:
    """Raises Malformed unless keys or values are [parts, heads, span, width] with the model's heads and parts * width = head_dim."""
    sizes = [size if isinstance(size, int) else 0 for size in tensor.shape]
    parts, heads, _, width = sizes if len(sizes) == 4 else (0, 0, 0, 0)
    if heads < 1 or heads != model.kv_heads or parts * width != model.head_dim:
        raise Malformed(f"manifest.graphs.{name} has a cache of shape {list(tensor.shape)}, which does not fit the model")


def _with_pages(manifest: Manifest) -> list[tuple[str, TargetShape | Draft, int]]:
    """The graphs with lanes that there are: name, model and slots of a page."""
    target, draft, plans = manifest.shape, manifest.draft, manifest.tensorrt is not None
    found: list[tuple[str, TargetShape | Draft, int]] = [("target_lanes", target, manifest.limits.capacity if plans else PAGE_SLOTS)]
    if draft:
        found.append(("draft_lanes", draft, draft.capacity if plans else PAGE_SLOTS))
    return [each for each in found if each[0] in manifest.graphs]


def _check_passes(name: str, graph: Graph, lanes: int, room: int) -> None:
    """Raises Malformed unless the largest pass has all ``lanes``, and at most ``room`` columns, which lie behind everything else."""
    most = [max(profile[size][2] for profile in graph.profiles) for size in ("B", "n") if all(size in each for each in graph.profiles)]
    if len(most) < 2 or most[0] != lanes or most[1] > room:
        raise Malformed(f"manifest.graphs.{name} has profiles that do not fit tensorrt.lanes or the capacity")


def _numbers(sizes: TargetShape | Draft) -> list[int]:
    return [value for value in vars(sizes).values() if isinstance(value, int)]


def check_tuning(tuning: Tuning, plans: bool) -> None:
    """Raises Malformed unless every policy has its networks, with one output per action, and every file has a hash."""
    for policy, (net, outputs, _) in ((policy, each) for policy, learned in tuning.learned.items() for each in learned.nets()):
        name, graph = net.graph, tuning.graphs.get(net.graph)
        if graph is None or "x" not in graph.inputs or "logits" not in graph.outputs or (plans and (not graph.plan or not graph.profiles)):
            raise Malformed(f"manifest.tuning.graphs lacks {name} of the policy {policy}")
        if graph.outputs["logits"].shape != (1, outputs):
            raise Malformed(f"manifest.tuning.learned.{policy} has {outputs} actions, {name} gives {graph.outputs['logits'].shape[-1]}")
    if missing := [name for name in _files_of(tuning.graphs) if name not in tuning.files]:
        raise Malformed(f"manifest.tuning names {missing[0]!r} without its hash")


def check_files(directory: Path, manifest: Manifest, verify: bool | None, backend: str) -> None:
    """Check that every file is listed, present, inside the directory and of its size, and that files which ``backend`` reads have their
    hash. ``verify``: hash them all (True), hash none (False), or believe those that have not changed since they were hashed (None). ONNX
    Runtime itself refuses graphs that read files outside of their directory. Raises EngineDirError."""
    remedy = manifest.rebuild
    used = [*_files_of(manifest.graphs), manifest.tokens.tokenizer, *manifest.tokens.chat_templates.values()]
    not_read = (".onnx", ".data") if backend == "tensorrt" else (".plan",)
    for name in used:
        if name not in manifest.files:
            raise EngineDirError(f"{directory / FILE_NAME} names {name!r} without its hash — export again: {remedy}")
    hashes = None if verify is False else Believed(directory, trust=not verify)
    checks = [(name, expected, "export", f"export again: {remedy}") for name, expected in manifest.files.items()]
    if tuning := manifest.tuning:
        again = f"tune again: resps-tune --engine-dir {directory}"
        checks += [(name, expected, "tuning", again) for name, expected in tuning.files.items()]
    for name, expected, made_by, again in checks:
        _check_file(directory, name, expected, None if name.endswith(not_read) else hashes, made_by, again)
    if hashes and verify is None:
        hashes.save()


def _files_of(graphs: Mapping[str, Graph], plans: bool = True) -> list[str]:
    return [name for graph in graphs.values() for name in (graph.file, graph.fused, graph.plan if plans else None) if name]


def _check_file(directory: Path, name: str, expected: File, hashes: Believed | None, made_by: str, remedy: str) -> None:
    if name != Path(name).name or name in (".", ".."):
        raise EngineDirError(f"{directory / FILE_NAME} names a file outside the directory: {name!r} — {remedy}")
    path = directory / name
    if not path.is_file():
        raise EngineDirError(f"{directory} lacks {name} — {remedy}")
    if path.resolve().parent != directory.resolve():
        raise EngineDirError(f"{path} is a link to a place outside the directory — {remedy}")
    if path.stat().st_size != expected.bytes or (hashes and hashes.sha256(path) != expected.sha256):
        raise EngineDirError(f"{path} was changed after the {made_by} — {remedy}")
