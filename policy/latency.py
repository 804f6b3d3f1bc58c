"""The latency models: milliseconds of passes, draft trees and rounds on one machine, interpolated from resps-tune's measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .base import Outcome
from .spec import TreeSpec

_DERIVED_LANES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Costs:
    """A few milliseconds that were measured on a machine. ``passes``: target passes, by lanes and rows a lane. ``drafts``: drafting, by
    lanes and depth, trees of ``width``; may be empty. All behind ``length`` committed tokens a lane."""

    passes: Mapping[int, Mapping[int, float]]
    drafts: Mapping[int, Mapping[int, float]]
    width: int
    length: int


@dataclass(frozen=True)
class LanesLatency:
    """Milliseconds of rounds in which several lanes share each pass.

    ``verify_ms[span][lanes][rows]``: a target pass over ``rows`` rows in all, of lanes with ``span`` slots each. Points with fewer rows
    than lanes repeat the first that has one row a lane. ``draft_ms[lanes][width][depth]``: drafting a tree in that many lanes at once, the
    draft's catch-up included. ``host_ms[lanes]``: the rest of a round. Interpolated as in LatencyModel. ``chunks``: rows of a prompt's
    chunk; ``chunk_ms``: of a pass over it alone, ``beside_ms``: that it adds to a pass over trees; empty if they were not measured.
    ``place_ms[span]``: of a place in attention that no row fills (`padding`); empty as well.
    """

    lanes: tuple[int, ...]
    rows: tuple[int, ...]
    spans: tuple[int, ...]
    verify_ms: tuple[tuple[tuple[float, ...], ...], ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    draft_ms: tuple[tuple[tuple[float, ...], ...], ...]
    host_ms: tuple[float, ...]
    chunks: tuple[int, ...] = ()
    chunk_ms: tuple[float, ...] = ()
    beside_ms: tuple[float, ...] = ()
    place_ms: tuple[float, ...] = ()

    def verify(self, rows: int, lanes: int, length: float, widest: int = 0) -> float:
        """Milliseconds of a target pass over ``rows`` rows of ``lanes`` lanes, each behind ``length`` committed tokens. ``widest``: rows of
        the largest tree [default: as if all were alike]."""
        return interpolate(self.rows, self.curve(lanes, length), rows) + self.place(length) * padding(rows, lanes, widest)

    def place(self, length: float) -> float:
        """Milliseconds of a place of `padding`."""
        return max(0.0, interpolate(self.spans, self.place_ms, length)) if self.place_ms else 0.0

    def curve(self, lanes: int, length: float) -> list[float]:
        """The same for every number of rows in ``rows``."""
        by_span = [_between(self.lanes, table, lanes) for table in self.verify_ms]
        return _between(self.spans, by_span, length)

    def draft(self, lanes: int, width: int, depth: int) -> float:
        """Milliseconds to draft trees of ``depth`` levels in ``lanes`` lanes at once; 0 without levels or lanes."""
        if depth == 0 or width == 0 or lanes == 0:
            return 0.0
        by_lanes = [interpolate(self.widths, [interpolate(self.depths, costs, depth) for costs in table], width) for table in self.draft_ms]
        return interpolate(self.lanes, by_lanes, lanes)

    def host(self, lanes: int) -> float:
        """Milliseconds of a round outside drafting and verifying."""
        return interpolate(self.lanes, self.host_ms, lanes)

    def read(self, rows: int, length: float) -> float:
        """Milliseconds of a pass over ``rows`` rows of one prompt, ``length`` tokens long so far."""
        return interpolate(self.chunks, self.chunk_ms, rows) if self.chunks else self.verify(rows, 1, length)

    def verify_beside(self, rows: int, lanes: int, length: float, beside: int, widest: int = 0) -> float:
        """Milliseconds of a pass as in ``verify`` that reads ``beside`` rows of a prompt too."""
        if not self.chunks or not beside:
            return self.verify(rows + beside, lanes, length, widest)
        return self.verify(rows, lanes, length, widest) + interpolate(self.chunks, self.beside_ms, beside)

    def corrected(self, costs: Costs) -> LanesLatency:
        """This model, made on another machine, for the machine of ``costs``: everything times what was measured over what this model says.
        Factors lie between those of the measured points, and beyond them stay as they are; without drafts theirs are those of passes."""
        rows = {
            lanes: {each: _ratio(ms, self.verify(lanes * each, lanes, costs.length)) for each, ms in found.items()}
            for lanes, found in costs.passes.items()
        }
        levels = {
            lanes: {depth: _ratio(ms, self.draft(lanes, costs.width, depth)) for depth, ms in found.items()}
            for lanes, found in costs.drafts.items()
        } or {lanes: {1: found[1]} for lanes, found in rows.items()}
        return replace(
            self,
            verify_ms=tuple(
                tuple(
                    tuple(ms * _factor(rows, lanes, count / lanes) for count, ms in zip(self.rows, curve, strict=True))
                    for lanes, curve in zip(self.lanes, table, strict=True)
                )
                for table in self.verify_ms
            ),
            draft_ms=tuple(
                tuple(tuple(ms * _factor(levels, lanes, depth) for depth, ms in zip(self.depths, curve, strict=True)) for curve in table)
                for lanes, table in zip(self.lanes, self.draft_ms, strict=True)
            ),
            host_ms=tuple(ms * _factor(rows, lanes, 1) for lanes, ms in zip(self.lanes, self.host_ms, strict=True)),
            place_ms=tuple(ms * _factor(rows, self.lanes[-1], 4) for ms in self.place_ms),
            chunk_ms=tuple(ms * _factor(rows, 1, each) for each, ms in zip(self.chunks, self.chunk_ms, strict=True)),
            beside_ms=tuple(ms * _factor(rows, 1, each) for each, ms in zip(self.chunks, self.beside_ms, strict=True)),
        )

    def of_one(self) -> LatencyModel:
        """The costs of one lane in these graphs, which know what several cost too."""
        verify = tuple(table[0] for table in self.verify_ms)
        return LatencyModel(self.rows, self.spans, verify, self.widths, self.depths, self.draft_ms[0], self.host_ms[0], self)


class RoundCosts(ABC):
    """Milliseconds of the rounds of one request. ``host_ms``: of a round outside drafting and verifying."""

    host_ms: float

    @abstractmethod
    def verify(self, nodes: int, length: int) -> float:
        """Milliseconds of a target pass over ``nodes`` rows after ``length`` committed tokens."""

    @abstractmethod
    def draft(self, width: int, depth: int) -> float:
        """Milliseconds to draft a tree of ``depth`` levels; 0 for a tree without levels."""

    def round(self, nodes: int, depth: int, width: int, length: int) -> float:
        """Milliseconds of a whole round that drafts ``depth`` levels of ``width`` and verifies ``nodes`` rows."""
        return self.draft(width, depth) + self.verify(nodes, length) + self.host_ms

    def round_with(self, spec: TreeSpec, length: int) -> float:
        """Milliseconds of a whole round with a complete tree of ``spec``."""
        return self.round(spec.nodes, spec.depth, spec.width, length)

    def observe(self, outcome: Outcome, depth: int, length: int) -> None:  # noqa: B027  # measured costs do not change
        """Learn from a round that drafted ``depth`` levels after ``length`` committed tokens."""


@dataclass(frozen=True)
class LatencyModel(RoundCosts):
    """Measured latencies in milliseconds.

    ``verify_ms[span][rows]``: a target pass. ``draft_ms[width][depth]``: drafting a tree, the draft's catch-up pass included. ``host_ms``:
    the rest of a round. Linear interpolation between measured points; beyond the last point the last slope continues. ``lanes``: the
    same for several requests that share a pass, None if it was not measured.
    """

    rows: tuple[int, ...]
    spans: tuple[int, ...]
    verify_ms: tuple[tuple[float, ...], ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    draft_ms: tuple[tuple[float, ...], ...]
    host_ms: float
    lanes: LanesLatency | None = None

    def verify(self, nodes: int, length: int) -> float:
        by_span = [interpolate(self.rows, costs, nodes) for costs in self.verify_ms]
        return interpolate(self.spans, by_span, length)

    def draft(self, width: int, depth: int) -> float:
        if depth == 0 or width == 0:
            return 0.0
        return interpolate(self.widths, [interpolate(self.depths, costs, depth) for costs in self.draft_ms], width)

    def alone(self) -> LanesLatency:
        """The same as a model of one lane."""
        verify = tuple((costs,) for costs in self.verify_ms)
        return LanesLatency((1,), self.rows, self.spans, verify, self.widths, self.depths, (self.draft_ms,), (self.host_ms,))

    def for_lanes(self) -> LanesLatency:
        """The model for several lanes: the measured one, or one derived from a single lane's passes. Derived, a pass depends on its rows
        only, and the draft takes longer with more rows just as the target does."""
        if self.lanes is not None:
            return self.lanes
        alone = self.verify(1, 0)
        growth = [self.verify(lanes, 0) / alone for lanes in _DERIVED_LANES]
        verify = tuple(tuple(costs for _ in _DERIVED_LANES) for costs in self.verify_ms)
        draft = tuple(tuple(tuple(factor * cost for cost in costs) for costs in self.draft_ms) for factor in growth)
        host = tuple(self.host_ms * lanes for lanes in _DERIVED_LANES)
        return LanesLatency(_DERIVED_LANES, self.rows, self.spans, verify, self.widths, self.depths, draft, host)


def interpolate(points: Sequence[int], values: Sequence[float], at: float) -> float:
    """Piecewise linear over ascending ``points``: constant below the first point, the last slope above the last one."""
    if len(points) == 1 or at <= points[0]:
        return values[0]
    upper = min(max(1, bisect_left(points, at)), len(points) - 1)
    low, high = points[upper - 1], points[upper]
    return values[upper - 1] + (values[upper] - values[upper - 1]) * (at - low) / (high - low)


def padding(rows: int, lanes: int, widest: int) -> int:
    """Places in attention beyond those that ``rows`` rows would take if all ``lanes`` had equally large trees: attention has as many places
    in every lane as the largest tree has rows."""
    return lanes * max(0, widest + -rows // lanes)


def _ratio(measured: float, modelled: float) -> float:
    return measured / modelled if modelled > 0 else 1.0


def _factor(table: Mapping[int, Mapping[int, float]], lanes: int, at: float) -> float:
    """A factor of ``table`` between the points of its lanes, and of what it has by lanes."""
    return _inside({count: _inside(found, at) for count, found in table.items()}, lanes)


def _inside(known: Mapping[int, float], at: float) -> float:
    """`interpolate` without what lies beyond the last point."""
    points = sorted(known)
    return interpolate(points, [known[point] for point in points], min(at, points[-1]))


def _between(points: Sequence[int], curves: Sequence[Sequence[float]], at: float) -> list[float]:
    """`interpolate` between whole curves."""
    return [interpolate(points, column, at) for column in zip(*curves, strict=True)]
