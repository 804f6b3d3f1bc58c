"""An exported target graph in ONNX Runtime, and its comparison with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.graphs.precision import PRECISIONS
from export.graphs.target import TargetWriter
from export.graphs.weights import WeightFile
from runtime.decoding.tree import Tree
from tests.support.tiny import VOCAB, reference

CAPACITY = 128
PROMPT = [int(token) for token in np.random.default_rng(1).integers(0, VOCAB, 11)]
TREE = Tree.from_parents([17, 4, 90, 31, 8, 4, 17, 55, 120], [-1, 0, 0, 1, 1, 2, 3, 5, 0])


class TargetGraph:
    """An exported target on disk, its session, and a cache that is handed from pass to pass."""

    def __init__(
        self, directory: Path, model: Any, precision: str = "fp32", level: str = "4", optimized: bool = True, capacity: int = CAPACITY
    ) -> None:
        if model is not None:  # else the directory has a checkpoint
            model.save_pretrained(directory)
        self.checkpoint = HuggingFaceCheckpoint(directory)
        self.arch, self.precision = self.checkpoint.arch, PRECISIONS[precision]
        with WeightFile(directory / "target.data") as weights:
            self.writer = writer = TargetWriter(self.arch, self.checkpoint, self.precision, capacity, weights)
            assert list(writer.build()) == list(range(1, self.arch.layers + 1))
        self.capacity = capacity
        self.file = directory / "target.onnx"
        onnx.save(writer.model(), self.file)
        self.session = self.open(level, optimized)
        self.clear()

    def open(self, level: str, optimized: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # it warns that the cache is not shared between input and output, which is intended here
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        if not optimized:  # the graph exactly as written, nothing fused
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        model = onnx.load(self.file, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = int(level)
        file = self.file.with_name(f"level{level}.onnx")
        onnx.save(model, file)
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def clear(self) -> None:
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        caches = [each for each in self.session.get_inputs() if each.name.startswith("past.")]
        self.cache = {
            each.name: np.zeros((each.shape[0], each.shape[1], self.capacity, each.shape[3]), kinds[each.type]) for each in caches
        }

    def run(self, tree: Tree, past: int, span: int = 64, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        feeds = {
            "tokens": tree.tokens[None],
            "depth": tree.depth[None],
            "tree_mask": tree.mask,
            "past": np.array([past]),
            "slots": np.arange(span),
            "rows": np.array(range(len(tree)) if rows is None else rows),
        }
        names = [each.name for each in self.session.get_outputs()]
        used = {name: np.ascontiguousarray(array[:, :, :span]) for name, array in self.cache.items()}
        result = dict(zip(names, self.session.run(names, {**feeds, **used}), strict=True))
        for name, array in self.cache.items():
            array[:, :, :span] = result.pop(name.replace("past.", "present."))
        return result

    def prefill(self, tokens: Sequence[int], step: int, span: int = 64) -> dict[str, np.ndarray]:
        """All rows of all chunks, joined."""
        passes = [self.run(Tree.chain(tokens[start : start + step]), start, span) for start in range(0, len(tokens), step)]
        return {name: np.concatenate([each[name] for each in passes], axis=1) for name in passes[0]}


def path_to(tree: Tree, node: int) -> list[int]:
    """Nodes from the root to ``node``."""
    return ([] if tree.parent[node] < 0 else path_to(tree, int(tree.parent[node]))) + [node]


def expect_rows(
    graph: TargetGraph, model: Any, result: dict[str, np.ndarray], tokens: Sequence[int], rows: Sequence[int], atol: float = 1e-4
) -> None:
    """The last len(rows) positions of ``tokens`` in transformers equal ``rows`` of ``result``: logits, argmax and features."""
    logits, streams = reference(model, tokens)
    features = np.concatenate([streams[layer] for layer in graph.arch.captured], axis=-1)
    count, rows = len(rows), list(rows)
    np.testing.assert_allclose(result["logits"][0, rows], logits[-count:], rtol=0, atol=atol)
    np.testing.assert_allclose(result["features"][0, rows], features[-count:], rtol=0, atol=1e-4)
    assert result["next_token"][0, rows].tolist() == logits[-count:].argmax(-1).tolist()
