"""Checks the graphs with lanes against the graphs for one lane, which were checked against the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from runtime.decoding.tree import Tree
from runtime.manifest.graphs import PAGE_SLOTS

from ..checkpoints.draft_checkpoint import DraftCheckpoint
from ..checkpoints.safetensors import Checkpoint
from ..graphs.builder import FLOAT16
from ..graphs.precision import NUMPY_TYPES, TENSORRT_PRECISIONS, Precision
from .draft import by_draft_id, cpu_type, open_session
from .kept import layers_are_stored_alike
from .lane_inputs import LaneRows, chunk_inputs, lane_inputs, padded_inputs
from .target import TREE_PARENTS, compare, log_softmax, logits_by_pieces, sampled_layers, tree_inputs
from .wiring import check_wiring

_ROWS, _SPAN, _POOL = len(TREE_PARENTS), PAGE_SLOTS + 64, 5  # rows of a lane; slots of the graph for one lane; pages
_REFERENCE = "graph for one lane"
_MOST = 1e-2  # of a logit in fp32. Attention to many slots of zeros amplifies rounding: SmolLM2-135M has 1.1e-3. A wrong graph has more.


def _lanes(vocab: int, most: int) -> list[LaneRows]:
    """Two lanes: a tree at the start of a cache, and a chain behind at most ``most`` slots, across a page boundary if that allows it."""
    tokens = np.random.default_rng(1).integers(0, vocab, 2 * _ROWS).tolist()
    past = max(0, min(PAGE_SLOTS - _ROWS // 2, most))
    return [LaneRows(Tree.from_parents(tokens[:_ROWS], TREE_PARENTS), 0, [2]), LaneRows(Tree.chain(tokens[_ROWS:]), past, [1, 0])]


def _inputs(rows: Sequence[LaneRows], kv_heads: int, static: bool) -> dict[str, np.ndarray]:
    """Of a pass over all ``rows``."""
    return padded_inputs(rows, [0] * _POOL, _SPAN) if static else lane_inputs(rows, _POOL, kv_heads)


def _bounds(precision: Precision, static: bool) -> Precision:
    """The precision whose bounds hold. With TensorRT both graphs multiply the same weights in the same type, so only activations are
    rounded."""
    return TENSORRT_PRECISIONS["fp16"] if static and precision.compute == FLOAT16 else precision


def check_target_lanes(
    one_lane: Path, lanes: Path, checkpoint: Checkpoint, precision: Precision, capacity: int, static: bool = False
) -> None:
    """Run the same rows through both target graphs, on caches of zeros, with the layers that `check_target` runs. ``capacity``: positions
    of the graphs. ``static``: the form for TensorRT. Raises ParityError if the logits differ by more than rounding."""
    arch = checkpoint.arch
    layers = sampled_layers(arch) if layers_are_stored_alike(checkpoint) else range(arch.layers)
    if len(layers) < arch.layers:
        check_wiring(onnx.load(lanes, load_external_data=False), arch.layers)
    rows = _lanes(arch.vocab, capacity - _ROWS)
    if static:
        inputs = _inputs(rows, arch.kv_heads, static)
    else:  # the chain once more, as the chunk of a prompt
        rows.append(replace(rows[-1], pages=[4, 3]))
        inputs = chunk_inputs(rows, _POOL, arch.kv_heads, chunk_last=True)
    alone = [logits_by_pieces(one_lane, precision, tree_inputs(each.tree, each.past, _SPAN), _SPAN, arch.layers, layers) for each in rows]
    together = logits_by_pieces(lanes, precision, inputs, _POOL, arch.layers, layers)
    expected, actual = np.concatenate(alone).astype(np.float64), together.astype(np.float64)
    difference = float(np.abs(expected - actual).max())
    bounds = _bounds(precision, static)
    compare(log_softmax(expected), log_softmax(actual), bounds, "target with lanes", difference, reference=_REFERENCE, most=_MOST)


def check_draft_lanes(directory: Path, draft: DraftCheckpoint, precision: Precision, capacity: int, static: bool = False) -> None:
    """Run the same rows through both draft graphs in ``directory``, on caches of zeros. ``capacity``: positions of the graphs. ``static``:
    the form for TensorRT. Raises ParityError if the log-probabilities differ by more than rounding."""
    layer, compute = draft.arch.layer, NUMPY_TYPES[cpu_type(precision)]
    rows = _lanes(layer.vocab, min(capacity - _ROWS, layer.longest_context))
    hidden = np.random.default_rng(2).standard_normal((1, 2 * _ROWS, layer.hidden), np.float32).astype(compute)

    def run(file: str, first: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """``first``: the caches' dimension of a variable size."""
        session = open_session(directory / file, compute, 2 * _SPAN if static else None)
        given = {**feeds, "rows": np.arange(feeds["tokens"].shape[1]), "beam": np.arange(len(draft.tokens))}
        for each in session.get_inputs():
            if each.name.startswith("past."):
                given[each.name] = np.zeros([size if isinstance(size, int) else first for size in each.shape], compute)
        _, log_probs, candidates = session.run(None, {each.name: given[each.name] for each in session.get_inputs()})[:3]
        return by_draft_id(draft, log_probs, candidates)

    expected = []
    for index, each in enumerate(rows):
        feeds = tree_inputs(each.tree, each.past, _SPAN) | {"write": np.array([each.past])}
        feeds["hidden"] = hidden[:, index * _ROWS : (index + 1) * _ROWS]
        expected.append(run("draft.onnx", _SPAN, feeds))
    actual = run("draft.lanes.onnx", _POOL, {**_inputs(rows, layer.kv_heads, static), "hidden": hidden})
    compare(np.concatenate(expected), actual, _bounds(precision, static), "draft with lanes", reference=_REFERENCE, most=_MOST)
