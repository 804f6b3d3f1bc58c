"""The inputs of a graph with lanes on the CPU: where rows lie in the pages, and what they attend to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...manifest.graphs import PAGE_SLOTS
from ..lane_cache import LaneRows, head_rows


def pages_bound(lanes: Sequence[LaneRows]) -> range:
    """The range of pages that holds those that the ``lanes`` use in this pass."""
    used = [_used(lane) for lane in lanes]
    return range(min(map(min, used)), max(map(max, used)) + 1)


def _used(lane: LaneRows) -> list[int]:
    """The lane's pages up to the last slot that is written or attended to. A pass reads whole pages, so others would slow it."""
    slots = max(lane.start + len(lane), lane.past + lane.mask.shape[1])
    return lane.cache.pages[: -(-slots // PAGE_SLOTS)]


def pass_inputs(lanes: Sequence[LaneRows], pages: range, heads: int) -> dict[str, np.ndarray]:
    """The inputs of a graph with lanes, without what only a draft or a chunk has and without caches. ``heads``: key heads.

    Pages of the range that belong to none of the lanes have owner 0 and attend to nothing.
    """
    return _of_rows(lanes, pages, heads) | _attention(lanes, pages)


def with_chunk(lanes: Sequence[LaneRows], pages: range, heads: int, chunk_last: bool) -> dict[str, np.ndarray]:
    """The same with a group of its own for a chunk. ``chunk_last``: whether the last of ``lanes`` is one, behind others."""
    if not chunk_last:
        nothing = np.zeros(0, np.int64)
        return pass_inputs(lanes, pages, heads) | {
            "chunk": nothing,
            "chunk_pages": nothing,
            "chunk_attend": np.zeros((0, 0, PAGE_SLOTS), bool),
        }
    *others, chunk = lanes
    inputs = _of_rows(lanes, pages, heads) | _attention(others, pages)
    used, count = np.asarray(_used(chunk)) - pages.start, len(chunk)
    columns = max(count, 2)
    first = inputs["tokens"].shape[1] - count
    inputs["flat"] = np.concatenate([inputs["flat"], len(others) * inputs["queries"].shape[1] + np.arange(count)])
    return inputs | {
        "chunk": first + np.minimum(np.arange(columns), count - 1),
        "chunk_pages": used,
        "chunk_attend": _attended(chunk, columns, len(used)),
    }


def _of_rows(lanes: Sequence[LaneRows], pages: range, heads: int) -> dict[str, np.ndarray]:
    """What every row has: its token, its position, and where its key and value go."""
    slots = [lane.cache.slot_numbers(np.arange(lane.start, lane.start + len(lane))) for lane in lanes]
    page, slot = divmod(np.concatenate(slots) - pages.start * PAGE_SLOTS, PAGE_SLOTS)
    places = np.empty((len(page), heads, 3), np.int64)
    places[..., 0], places[..., 1], places[..., 2] = page[:, None], np.arange(heads), slot[:, None]
    return {
        "tokens": np.concatenate([lane.tokens for lane in lanes])[None],
        "positions": np.concatenate([lane.positions for lane in lanes])[None],
        "places": places,
        "rows": head_rows(lanes),
    }


def _attention(lanes: Sequence[LaneRows], pages: range) -> dict[str, np.ndarray]:
    """What the rows of ``lanes`` attend to, and where their results are."""
    counts = np.array([len(lane) for lane in lanes])
    starts, widest = np.cumsum(counts) - counts, int(counts.max())
    used = [_used(lane) for lane in lanes]
    most = max(map(len, used))
    owner = np.zeros(len(pages), np.int64)
    attend = np.zeros((len(pages), widest, PAGE_SLOTS), dtype=bool)
    in_order = np.empty((len(lanes), most), np.int64)
    counted = np.zeros((len(lanes), 2, most), np.float32)
    for index, lane in enumerate(lanes):
        own = np.asarray(used[index]) - pages.start
        owner[own] = index
        attend[own] = _attended(lane, widest, len(own))
        in_order[index] = own[0]
        in_order[index, : len(own)] = own
        counted[index, :, : len(own)] = 1
    column = np.arange(widest)
    return {
        "queries": starts[owner][:, None] + np.minimum(column, counts[owner][:, None] - 1),
        "attend": attend,
        "owner": owner,
        "pages": in_order,
        "counted": counted,
        "flat": np.concatenate([index * widest + np.arange(count) for index, count in enumerate(counts)]),
    }


def _attended(lane: LaneRows, rows: int, pages: int) -> np.ndarray:
    """Bool [pages, rows, PAGE_SLOTS]; rows behind the lane's own are like its last."""
    count, slots = len(lane), pages * PAGE_SLOTS
    seen = np.zeros((rows, slots), dtype=bool)
    seen[:, max(0, lane.past - lane.window) if lane.window is not None else 0 : lane.past] = True
    seen[:count, lane.past : lane.past + lane.mask.shape[1]] = lane.mask
    seen[count:] = seen[count - 1]
    return seen.reshape(rows, -1, PAGE_SLOTS).transpose(1, 0, 2)
