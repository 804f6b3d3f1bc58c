"""What rounds cost on one machine, as measured by resps-tune."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from .spec import TreeSpec


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds. verify_ms[span][rows]: a pass; draft_ms[width][depth]: a tree, with the catch-up before it; ``host_ms``: the rest of a
    round. Between measured points costs are interpolated, beyond them the last slope goes on."""

    rows: tuple[int, ...]
    spans: tuple[int, ...]
    verify_ms: tuple[tuple[float, ...], ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    draft_ms: tuple[tuple[float, ...], ...]
    host_ms: float

    def verify(self, nodes: int, length: int) -> float:
        """A pass of ``nodes`` rows behind ``length`` committed tokens."""
        by_span = [_between(self.rows, costs, nodes) for costs in self.verify_ms]
        return _between(self.spans, by_span, length)

    def draft(self, width: int, depth: int) -> float:
        """A tree of ``depth`` levels; without any, nothing."""
        if depth == 0 or width == 0:
            return 0.0
        return _between(self.widths, [_between(self.depths, costs, depth) for costs in self.draft_ms], width)

    def round(self, nodes: int, depth: int, width: int, length: int) -> float:
        """Everything."""
        return self.draft(width, depth) + self.verify(nodes, length) + self.host_ms

    def of(self, spec: TreeSpec, length: int) -> float:
        """A round with the whole of ``spec``."""
        return self.round(spec.nodes, spec.depth, spec.width, length)


def _between(points: Sequence[int], values: Sequence[float], at: float) -> float:
    """Piecewise linear; ``points`` ascend. Below the first point its value, above the last the last slope."""
    if len(points) == 1 or at <= points[0]:
        return values[0]
    upper = min(max(1, bisect_left(points, at)), len(points) - 1)
    low, high = points[upper - 1], points[upper]
    return values[upper - 1] + (values[upper] - values[upper - 1]) * (at - low) / (high - low)
