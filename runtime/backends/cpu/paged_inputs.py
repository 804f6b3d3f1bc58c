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
    """The inputs of a graph with lanes, without what only a draft has and without caches. ``heads``: key heads.

    Pages of the range that belong to none of the lanes have owner 0 and attend to nothing.
    """
    counts = np.array([len(lane) for lane in lanes])
    starts, widest = np.cumsum(counts) - counts, int(counts.max())
    used = [_used(lane) for lane in lanes]
    most = max(map(len, used))
    owner = np.zeros(len(pages), np.int64)
    attend = np.zeros((len(pages), widest, PAGE_SLOTS), dtype=bool)
    in_order = np.empty((len(lanes), most), np.int64)
    counted = np.zeros((len(lanes), 2, most), np.float32)
    slots = []
    for index, lane in enumerate(lanes):
        own = np.asarray(used[index]) - pages.start
        owner[own] = index
        attend[own] = _attended(lane, widest, len(own))
        in_order[index] = own[0]
        in_order[index, : len(own)] = own
        counted[index, :, : len(own)] = 1
        slots.append(lane.cache.slot_numbers(np.arange(lane.start, lane.start + len(lane))) - pages.start * PAGE_SLOTS)
    page, slot = divmod(np.concatenate(slots), PAGE_SLOTS)
    places = np.empty((len(page), heads, 3), np.int64)
    places[..., 0], places[..., 1], places[..., 2] = page[:, None], np.arange(heads), slot[:, None]
    column = np.arange(widest)
    return {
        "tokens": np.concatenate([lane.tokens for lane in lanes])[None],
        "positions": np.concatenate([lane.positions for lane in lanes])[None],
        "places": places,
        "queries": starts[owner][:, None] + np.minimum(column, counts[owner][:, None] - 1),
        "attend": attend,
        "owner": owner,
        "pages": in_order,
        "counted": counted,
        "flat": np.concatenate([index * widest + np.arange(count) for index, count in enumerate(counts)]),
        "rows": head_rows(lanes),
    }


def _attended(lane: LaneRows, rows: int, pages: int) -> np.ndarray:
    """Bool [pages, rows, PAGE_SLOTS]; rows behind the lane's own are like its last."""
    count, slots = len(lane), pages * PAGE_SLOTS
    seen = np.zeros((rows, slots), dtype=bool)
    seen[:, max(0, lane.past - lane.window) if lane.window is not None else 0 : lane.past] = True
    seen[:count, lane.past : lane.past + lane.mask.shape[1]] = lane.mask
    seen[count:] = seen[count - 1]
    return seen.reshape(rows, -1, PAGE_SLOTS).transpose(1, 0, 2)
