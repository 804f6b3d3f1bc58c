"""Passes of the graphs with lanes in ONNX Runtime: a pool of pages, and the inputs for rows of several requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runtime.decoding.tree import Tree
from runtime.manifest.graphs import PAGE_SLOTS


@dataclass(frozen=True)
class LaneRows:
    """Rows of one request in a pass. ``pages``: of the pool, in the order of its slots. ``past``: committed slots."""

    tree: Tree
    past: int
    pages: Sequence[int]

    def __len__(self) -> int:
        return len(self.tree)

    def used(self) -> list[int]:
        """The pages that the rows read or write."""
        return list(self.pages[: -(-(self.past + len(self)) // PAGE_SLOTS)])

    def attended(self, page: int) -> np.ndarray:
        """Slots of the lane's ``page``-th page that each row attends to, bool [rows, PAGE_SLOTS]."""
        slots = np.arange(page * PAGE_SLOTS, (page + 1) * PAGE_SLOTS) - self.past
        inside = (slots >= 0) & (slots < len(self))
        return np.where(inside, self.tree.mask[:, np.clip(slots, 0, len(self) - 1)], slots < 0)


def page_feeds(lanes: Sequence[LaneRows], pool: int, kv_heads: int, columns: int = 0) -> dict[str, np.ndarray]:
    """The inputs of a pass but the caches and ``rows``. ``pool``: pages. ``columns``: at least so many in ``queries``.

    A pass of one row repeats it, because ONNX Runtime has another kernel for a single row.
    """
    n = max(columns, *map(len, lanes))
    used, starts = [lane.used() for lane in lanes], np.cumsum([0, *map(len, lanes)])
    owner, queries, attend = np.zeros(pool, np.int64), np.zeros((pool, n), np.int64), np.zeros((pool, n, PAGE_SLOTS), bool)
    m, row_of_column = max(map(len, used)), [np.minimum(np.arange(n), len(lane) - 1) for lane in lanes]
    for index, lane in enumerate(lanes):
        for at, page in enumerate(used[index]):
            owner[page], queries[page] = index, starts[index] + row_of_column[index]
            attend[page] = lane.attended(at)[row_of_column[index]]
    slots = [(lane, lane.past + row) for lane in lanes for row in range(len(lane))]
    places = np.array([[(lane.pages[slot // PAGE_SLOTS], head, slot % PAGE_SLOTS) for head in range(kv_heads)] for lane, slot in slots])
    feeds = {
        "tokens": np.concatenate([lane.tree.tokens for lane in lanes])[None],
        "positions": np.concatenate([lane.past + lane.tree.depth for lane in lanes])[None],
        "places": places,
        "queries": queries,
        "attend": attend,
        "owner": owner,
        "pages": np.array([[*pages, *[pages[0]] * (m - len(pages))] for pages in used]),
        "counted": np.array([[[1.0] * len(pages) + [0.0] * (m - len(pages))] * 2 for pages in used], np.float32),
        "flat": np.concatenate([index * n + np.arange(len(lane)) for index, lane in enumerate(lanes)]),
    }
    if len(slots) == 1:
        feeds |= {name: np.repeat(feeds[name], 2, axis) for name, axis in (("tokens", 1), ("positions", 1), ("places", 0), ("flat", 0))}
    return feeds


class LanesGraph:
    """A graph with lanes, and its pool of ``pool`` pages, which passes change."""

    def __init__(self, file: Path, pool: int, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.outputs = [each.name for each in self.session.get_outputs()]
        shapes = {each.name: tuple(each.shape[1:]) for each in self.session.get_inputs() if each.name.startswith("past.")}
        self.cache = {name: np.zeros((pool, *shape), np.float32) for name, shape in shapes.items()}
        self.kv_heads, self.pool = next(iter(shapes.values()))[0], pool

    def run(
        self, lanes: Sequence[LaneRows], columns: int = 0, hidden: Sequence[np.ndarray] | None = None, **feeds: np.ndarray
    ) -> list[dict[str, np.ndarray]]:
        """Outputs of each lane, all with one row per row of its tree. ``hidden``: [rows, H] of each lane, for a draft. ``feeds``: other
        inputs."""
        pages = page_feeds(lanes, self.pool, self.kv_heads, columns)
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
