"""The report's plots of a run with several clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..figures import Percentiles
from ..svg import new_figure, svg_of
from .figures import LoadCell, LoadTable
from .record import Arrivals


def plots(table: LoadTable) -> dict[str, str]:
    """Title -> SVG."""
    closed = [each for each in table.arrivals if each.rate is None]
    opened = [each for each in table.arrivals if each.rate is not None]
    found = {}
    for arrivals, over, scale in ((closed, "clients", "number of clients"), (opened, "arrivals", "requests/s that arrive")):
        if arrivals:
            found[f"Throughput over {over}"] = _throughput(table, arrivals, scale)
            found[f"First token over {over}"] = _latency(table, arrivals, scale, lambda cell: cell.first_token)
            found[f"Inter-token latency over {over}"] = _latency(table, arrivals, scale, lambda cell: cell.inter_token)
    return found


def _cells(table: LoadTable, contender: str, arrivals: Sequence[Arrivals]) -> list[LoadCell]:
    """A contender's cells, in the order of ``arrivals``."""
    cells = {each.arrivals: each for each in table.cells if each.contender == contender}
    return [cells[each] for each in arrivals if each in cells]


def _at(cell: LoadCell) -> float:
    return float(cell.arrivals.clients or cell.arrivals.rate or 0)


def _throughput(table: LoadTable, arrivals: Sequence[Arrivals], scale: str) -> str:
    """tokens/s, with the range of the turns, and beside it the ratio to the first contender."""
    figure, (left, right) = new_figure(9.5, 3.6, 2)
    for place, contender in enumerate(table.contenders):
        cells = _cells(table, contender, arrivals)
        rates = [cell.tokens_per_second for cell in cells]
        errors = [[cell.tokens_per_second - cell.lowest for cell in cells], [cell.highest - cell.tokens_per_second for cell in cells]]
        left.errorbar(list(map(_at, cells)), rates, errors, label=contender, color=f"C{place}", marker="o", ms=4, lw=1.3, capsize=3)
        there = [cell for cell in cells if cell.ratio is not None]
        right.plot(list(map(_at, there)), [cell.ratio for cell in there], color=f"C{place}", marker="o", ms=4, lw=1.3)
    left.set_ylabel("new tokens/s")
    right.set_ylabel(f"times {table.contenders[0]}")
    return _finished(figure, (left, right), arrivals, scale)


def _latency(
    table: LoadTable,
    arrivals: Sequence[Arrivals],
    scale: str,
    figure_of: Callable[[LoadCell], Percentiles | None],
) -> str:
    """p50 and p99 side by side, in milliseconds."""
    figure, both = new_figure(9.5, 3.6, 2)
    for place, contender in enumerate(table.contenders):
        found = [(_at(cell), spans) for cell in _cells(table, contender, arrivals) if (spans := figure_of(cell)) is not None]
        for axes, which in zip(both, ("p50", "p99"), strict=True):
            values = [getattr(spans, which) for _, spans in found]
            axes.plot([at for at, _ in found], values, label=contender, color=f"C{place}", marker="o", ms=4, lw=1.3)
    for axes, which in zip(both, ("p50", "p99"), strict=True):
        axes.set_ylabel(f"milliseconds, {which}")
    return _finished(figure, both, arrivals, scale)


def _finished(figure: Any, both: Sequence[Any], arrivals: Sequence[Arrivals], scale: str) -> str:
    at = [float(each.clients or each.rate or 0) for each in arrivals]
    for axes in both:
        axes.set_xscale("log", base=2)
        axes.set_xticks(at, [f"{each:g}" for each in at])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(scale)
        axes.grid(alpha=0.3)
    lines, labels = both[0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, ncols=min(6, len(labels)), loc="outside upper center", frameon=False)
    return svg_of(figure)
