"""The latency model: milliseconds of a pass, of a draft tree and of a round on one machine, interpolated from resps-tune's measurements."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from .spec import TreeSpec


@dataclass(frozen=True)
class LatencyModel:
    """Measured latencies in milliseconds.

    ``verify_ms[span][rows]``: a target pass. ``draft_ms[width][depth]``: drafting a tree, the draft's catch-up pass included. ``host_ms``:
    the rest of a round. Linear interpolation between measured points; beyond the last point the last slope continues.
    """

    rows: tuple[int, ...]
    spans: tuple[int, ...]
    verify_ms: tuple[tuple[float, ...], ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    draft_ms: tuple[tuple[float, ...], ...]
    host_ms: float

    def verify(self, nodes: int, length: int) -> float:
        """Milliseconds of a target pass over ``nodes`` rows after ``length`` committed tokens."""
        by_span = [_interpolate(self.rows, costs, nodes) for costs in self.verify_ms]
        return _interpolate(self.spans, by_span, length)

    def draft(self, width: int, depth: int) -> float:
        """Milliseconds to draft a tree of ``depth`` levels; 0 for a tree without levels."""
        if depth == 0 or width == 0:
            return 0.0
        return _interpolate(self.widths, [_interpolate(self.depths, costs, depth) for costs in self.draft_ms], width)

    def round(self, nodes: int, depth: int, width: int, length: int) -> float:
        """Milliseconds of a whole round that drafts ``depth`` levels of ``width`` and verifies ``nodes`` rows."""
        return self.draft(width, depth) + self.verify(nodes, length) + self.host_ms

    def round_with(self, spec: TreeSpec, length: int) -> float:
        """Milliseconds of a whole round with a complete tree of ``spec``."""
        return self.round(spec.nodes, spec.depth, spec.width, length)


def _interpolate(points: Sequence[int], values: Sequence[float], at: float) -> float:
    """Piecewise linear over ascending ``points``: constant below the first point, the last slope above the last one."""
    if len(points) == 1 or at <= points[0]:
        return values[0]
    upper = min(max(1, bisect_left(points, at)), len(points) - 1)
    low, high = points[upper - 1], points[upper]
    return values[upper - 1] + (values[upper] - values[upper - 1]) * (at - low) / (high - low)
