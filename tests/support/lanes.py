"""Passes of the graphs with lanes in ONNX Runtime, and their pool of pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from export.parity.lane_inputs import LaneRows, chunk_inputs, lane_inputs
from runtime.decoding.tree import Tree


class LanesGraph:
    """A graph with lanes, and its pool of ``pool`` pages, which passes change."""

    def __init__(self, file: Path, pool: int, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.takes_chunks = "chunk" in [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]
        shapes = {each.name: tuple(each.shape[1:]) for each in self.session.get_inputs() if each.name.startswith("past.")}
        self.cache = {name: np.zeros((pool, *shape), np.float32) for name, shape in shapes.items()}
        self.kv_heads, self.pool = next(iter(shapes.values()))[0], pool

    def run(
        self,
        lanes: Sequence[LaneRows],
        columns: int = 0,
        hidden: Sequence[np.ndarray] | None = None,
        chunk_last: bool = False,
        **feeds: np.ndarray,
    ) -> list[dict[str, np.ndarray]]:
        """Outputs of each lane, all with one row per row of its tree. ``hidden``: [rows, H] of each lane, for a draft. ``chunk_last``: the
        last lane is the chunk of a prompt. ``feeds``: other inputs."""
        if self.takes_chunks:
            pages = chunk_inputs(lanes, self.pool, self.kv_heads, columns, chunk_last)
        else:
            pages = lane_inputs(lanes, self.pool, self.kv_heads, columns)
        count = pages["tokens"].shape[1]
        if hidden is not None:
            joined = np.concatenate(hidden)
            feeds = {**feeds, "hidden": np.resize(joined, (count, joined.shape[1]))[None]}
        feeds = {"rows": np.arange(count), **pages, **feeds, **self.cache}
        found = dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))
        for name in self.cache:
            self.cache[name] = found.pop(name.replace("past.", "present."))
        return self._split(found, lanes)

    @staticmethod
    def _split(found: Mapping[str, np.ndarray], lanes: Sequence[LaneRows]) -> list[dict[str, np.ndarray]]:
        flat: dict[str, Any] = {name: array[0] if array.shape[0] == 1 else array for name, array in found.items()}
        ends = np.cumsum([len(lane) for lane in lanes])
        return [{name: array[end - len(lane) : end] for name, array in flat.items()} for lane, end in zip(lanes, ends, strict=True)]

    def prefill(
        self, tokens: Sequence[int], pages: Sequence[int], chunk: int = 50, hidden: np.ndarray | None = None, **feeds: np.ndarray
    ) -> None:
        """Commit a prompt, in chains, which may cross pages."""
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            inputs = None if hidden is None else [hidden[start : start + len(part)]]
            self.run([LaneRows(Tree.chain(part), start, pages)], hidden=inputs, **feeds)
