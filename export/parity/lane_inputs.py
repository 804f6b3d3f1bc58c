"""The inputs of a pass of the graphs with lanes, in numpy (paged_attention.py and padded_attention.py in export/graphs/lanes say what they
mean)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.decoding.tree import Tree
from runtime.manifest.graphs import PAGE_SLOTS


@dataclass(frozen=True)
class LaneRows:
    """Rows of one lane in a pass. ``past``: committed slots. ``pages``: the lane's pages of the pool, in the order of its slots; one with
    TensorRT."""

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


def lane_inputs(lanes: Sequence[LaneRows], pool: int, kv_heads: int, columns: int = 0) -> dict[str, np.ndarray]:
    """The inputs of a pass but the caches, ``rows`` and what only a draft has. ``pool``: pages. ``columns``: `queries` has at least so
    many.

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
    inputs = _rows(lanes) | {
        "places": places,
        "queries": queries,
        "attend": attend,
        "owner": owner,
        "pages": np.array([[*pages, *[pages[0]] * (m - len(pages))] for pages in used]),
        "counted": np.array([[[1.0] * len(pages) + [0.0] * (m - len(pages))] * 2 for pages in used], np.float32),
        "flat": np.concatenate([index * n + np.arange(len(lane)) for index, lane in enumerate(lanes)]),
    }
    if len(slots) == 1:
        inputs |= {name: np.repeat(inputs[name], 2, axis) for name, axis in (("tokens", 1), ("positions", 1), ("places", 0), ("flat", 0))}
    return inputs


def chunk_inputs(lanes: Sequence[LaneRows], pool: int, kv_heads: int, columns: int = 0, chunk_last: bool = False) -> dict[str, np.ndarray]:
    """The same for a target. ``chunk_last``: the last of several lanes has the group of its own."""
    if not chunk_last:
        nothing = np.zeros(0, np.int64)
        return lane_inputs(lanes, pool, kv_heads, columns) | {
            "chunk": nothing,
            "chunk_pages": nothing,
            "chunk_attend": np.zeros((0, 0, PAGE_SLOTS), bool),
        }
    *others, chunk = lanes
    inputs, own = lane_inputs(others, pool, kv_heads, columns), lane_inputs([chunk], pool, kv_heads, 2)
    own_rows, flat = np.arange(len(chunk)), inputs["flat"][: sum(map(len, others))]
    first, pages = len(flat), chunk.used()
    for name, axis in (("tokens", 1), ("positions", 1), ("places", 0)):
        both = np.take(inputs[name], range(first), axis), np.take(own[name], own_rows, axis)
        inputs[name] = np.concatenate(both, axis)
    return inputs | {
        "flat": np.concatenate([flat, len(others) * inputs["queries"].shape[1] + own_rows]),
        "chunk": first + own["queries"][pages[0]],
        "chunk_pages": np.array(pages),
        "chunk_attend": own["attend"][pages],
    }


def padded_inputs(lanes: Sequence[LaneRows], lengths: Sequence[int], span: int, columns: int = 0) -> dict[str, np.ndarray]:
    """The same in the form for TensorRT, for a draft whose rows are a whole tree too. ``lengths``: committed slots of every page of the
    pass; those of ``lanes`` count instead where they are. ``span``: slots that attention reads."""
    n, past, start = max(columns, *map(len, lanes)), np.array(lengths), 0
    pad, tree_mask, flat = np.zeros((len(past), n), np.int64), np.zeros((len(past), n, n), bool), []
    for lane in lanes:
        page, own = lane.pages[0], np.minimum(np.arange(n), len(lane) - 1)
        past[page], pad[page] = lane.past, start + own
        tree_mask[page, :, : len(lane)] = lane.tree.mask[own]
        flat.append(page * n + np.arange(len(lane)))
        start += len(lane)
    masks = {"pad": pad, "flat": np.concatenate(flat), "tree_mask": tree_mask}
    return _rows(lanes) | masks | {"past": past, "write": past, "slots": np.arange(span)}


def _rows(lanes: Sequence[LaneRows]) -> dict[str, np.ndarray]:
    return {
        "tokens": np.concatenate([lane.tree.tokens for lane in lanes])[None],
        "positions": np.concatenate([lane.past + lane.tree.depth for lane in lanes])[None],
    }
