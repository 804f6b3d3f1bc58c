"""Passes of TensorRT's graphs in ONNX Runtime, for one lane and for several, with their static caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.parity.draft import open_session
from export.parity.lane_inputs import LaneRows, padded_inputs
from export.parity.target import tree_inputs
from runtime.decoding.tree import Tree


class StaticGraph:
    """A graph in the static form and its cache of ``pages`` lanes, of which the first ``span`` slots are read. Behind them is NaN.
    ``compute``: float32 in place of bfloat16."""

    def __init__(self, file: Path, compute: np.dtype[Any], pages: int, span: int) -> None:
        self.session, self.compute, self.span, self.lengths = open_session(file, compute), compute, span, [0] * pages
        self.outputs = [each.name for each in self.session.get_outputs()]
        shapes = {each.name: each.shape[1:] for each in self.session.get_inputs() if each.name.startswith("past.")}
        self.cache = {name: np.full((pages, *shape), np.nan, compute) for name, shape in shapes.items()}
        for array in self.cache.values():
            array[:, :, :span] = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One pass. Every output as [rows, ...], one row for each of the pass."""
        count = feeds["tokens"].shape[1]
        given = {"rows": np.arange(count), **feeds, **self.cache}
        given = {each.name: given[each.name] for each in self.session.get_inputs()}
        found = dict(zip(self.outputs, self.session.run(self.outputs, given), strict=True))
        self.cache = {name: found.pop(name.replace("past.", "present.")) for name in self.cache}
        return {name: array.reshape(count, -1) for name, array in found.items()}

    def alone(self, tree: Tree, past: int, **more: np.ndarray) -> dict[str, np.ndarray]:
        """A pass of a graph for one lane."""
        return self.run({**tree_inputs(tree, past, self.span), "write": np.array([past]), **more})

    def together(self, lanes: Sequence[LaneRows], columns: int = 0, **more: np.ndarray) -> list[dict[str, np.ndarray]]:
        """A pass of a graph with lanes; what it gives each of them."""
        found = self.run({**padded_inputs(lanes, self.lengths, self.span, columns), **more})
        ends = np.cumsum([len(lane) for lane in lanes])
        return [{name: array[end - len(lane) : end] for name, array in found.items()} for lane, end in zip(lanes, ends, strict=True)]
