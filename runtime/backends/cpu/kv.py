"""The KV cache of one model in host memory. It alone knows how much of it is committed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..base import CacheLayout
from ..spanned_cache import SpannedCache


class KVCache(SpannedCache):
    """The cache in host memory.

    Every tensor has memory for ``capacity`` slots and uses the front of it as [parts, heads, span, width]. So attention reads a contiguous
    array of ``span`` slots, without a Slice and its copy, which took 5 % of a pass (docs/decisions.md, "Runtime").
    """

    def __init__(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int, span_step: int = 64) -> None:
        super().__init__(capacity, span_step)
        self._layouts = {"key": keys, "value": values}
        # np.zeros maps pages only when they are written: unused capacity costs no memory.
        self._buffers = {
            kind: np.zeros((layers, layout.planes * capacity * layout.width), layout.dtype) for kind, layout in self._layouts.items()
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Buffers by the names of graph inputs and outputs. A call uses the front of a buffer, and engines update it in place."""
        buffers = ((kind, layer, buffer) for kind, layers in self._buffers.items() for layer, buffer in enumerate(layers))
        return {f"{side}.{layer}.{kind}": buffer for kind, layer, buffer in buffers for side in ("past", "present")}

    def span_for(self, slots: int) -> int:
        """The span to reserve when ``slots`` are needed. Steps grow with the length, so that changing the layout stays a small share of the
        work."""
        step = self._step * max(1, slots // (8 * self._step))
        return min(-(-slots // step) * step, self.capacity)

    def spans(self) -> Sequence[int]:
        """The first span only: a new span costs little on the CPU."""
        return [min(self._step, self.capacity)]

    def _change_span(self, span: int) -> None:
        """Move every plane to its place in the new layout: the last plane first when growing, the first when shrinking, so none is
        overwritten before it moved. Plane by plane, because numpy moves a contiguous plane without a temporary copy; a copy of all
        layers left a hole in the heap (see scratch_buffers in decoding/gumbel.py)."""
        for kind, layout in self._layouts.items():
            old, new, size = self._span * layout.width, span * layout.width, self._length * layout.width
            planes = range(1, layout.planes) if span < self._span else range(layout.planes - 1, 0, -1)
            for buffer in self._buffers[kind]:
                for plane in planes:
                    buffer[plane * new : plane * new + size] = buffer[plane * old : plane * old + size]
        self._span = span

    def _views(self) -> list[np.ndarray]:
        """Keys and values, each [layers, planes, span, width]; views."""
        views = []
        for kind, layout in self._layouts.items():
            used = self._buffers[kind][:, : layout.planes * self._span * layout.width]
            views.append(used.reshape(len(used), layout.planes, self._span, layout.width))
        return views

    def commit(self, path: Sequence[int]) -> None:
        """Commit the rows ``path`` of the last pass (ascending, starting with row 0): move them to follow the committed slots."""
        start, in_place = self._length, 0
        while in_place < len(path) and path[in_place] == in_place:
            in_place += 1
        if in_place < len(path):
            for rows in self._views():
                rows[:, :, start + in_place : start + len(path)] = rows[:, :, [start + row for row in path[in_place:]]]
        self._length = start + len(path)

    def _clear(self) -> None:
        for rows in self._views():
            rows[:] = 0

    def rows(self) -> np.ndarray:
        """The committed part, [layers, 2, 1, Hkv, length, D]; a copy."""
        keys, values = (rows[:, :, : self._length] for rows in self._views())
        layers, heads, length, _ = keys.shape
        parts = values.reshape(layers, -1, heads, length, values.shape[-1])
        joined = parts.transpose(0, 2, 3, 1, 4).reshape(keys.shape)
        return np.stack([keys[:, None], joined[:, None]], axis=1)
