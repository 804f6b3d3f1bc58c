"""The report's plots, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .figures import Cell, Table, per_token
from .ratio import Spread
from .record import BASELINE, Measurement
from .svg import new_figure, svg_of
from .tables import label

PARTS = {"draft": "#d98c3f", "verify": "#3f6fb0", "host": "#8a8a8a"}
MAX_TREES = 10  # columns of the histogram


def plots(measurement: Measurement, table: Table) -> dict[str, str]:
    """Title -> SVG."""
    labels = [label(contender) for contender in measurement.contenders]
    colours = _colours(len(labels))
    return {
        f"Tokens/s over {BASELINE}, with 95 % intervals": _ratios(measurement, table, labels, colours),
        "Tokens per cycle": _lengths(measurement, table, labels, colours),
        "Where a cycle's time goes": _split(table, labels),
        "Inter-token latency": _latency(measurement, labels, colours),
        "Trees requested and rows verified, shares of a contender's rounds": _trees(table, labels),
    }


def _colours(count: int) -> list[Any]:
    """Grey for the baseline, then distinct colours."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"]
    return ["#b0b0b0", *(palette(place % palette.N) for place in range(count - 1))]


def _bars(groups: Sequence[str], labels: Sequence[str], values: np.ndarray, colours: Sequence[Any], errors: np.ndarray | None) -> Any:
    """Groups of bars, one per contender. ``values`` [contenders, groups], nan for no bar; ``errors`` [contenders, 2, groups]."""
    count = len(labels)
    figure, axes = new_figure(max(6.5, 1.2 + len(groups) * (0.5 + 0.27 * count)), 3.6)
    for row, name in enumerate(labels):
        places = np.arange(len(groups)) + (row - (count - 1) / 2) * 0.8 / count
        spread = None if errors is None else errors[row]
        axes.bar(places, values[row], 0.8 / count, label=name, color=colours[row], yerr=spread, error_kw={"lw": 0.8, "capsize": 2})
        tops = values[row] if spread is None else values[row] + spread[1]
        for place, value, top in zip(places, values[row], tops, strict=True):
            if np.isfinite(value):
                axes.text(place, top, f" {value:.2f}", ha="center", va="bottom", rotation=90, fontsize=7)
    axes.margins(x=0.02, y=0.16)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend(fontsize=8, ncols=min(count, 6), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _groups(measurement: Measurement) -> list[str]:
    return [*measurement.sets, "mean"] if len(measurement.sets) > 1 else measurement.sets


def _ratios(measurement: Measurement, table: Table, labels: Sequence[str], colours: Sequence[Any]) -> str:
    groups, count = _groups(measurement), len(labels)
    spreads: list[list[Spread | None]] = [
        [cell.ratio.median if cell.ratio else None for cell in table.cells if cell.contender == mean.contender] + [mean.median]
        for mean in table.means
    ]
    values, errors = np.full((count, len(groups)), np.nan), np.zeros((count, 2, len(groups)))
    for row, found in enumerate(spreads):
        for place, spread in enumerate(found[: len(groups)]):
            if spread is not None:
                values[row, place] = spread.value
                if spread.low is not None and spread.high is not None:
                    errors[row, :, place] = max(0.0, spread.value - spread.low), max(0.0, spread.high - spread.value)
    figure, axes = _bars(groups, labels, values, colours, errors)
    axes.axhline(1.0, color="black", lw=0.8, ls=":")
    axes.set_ylabel(f"times {BASELINE}")
    return svg_of(figure)


def _lengths(measurement: Measurement, table: Table, labels: Sequence[str], colours: Sequence[Any]) -> str:
    groups = _groups(measurement)
    rows = [
        [cell.tokens_per_cycle for cell in table.cells if cell.contender == mean.contender] + [mean.tokens_per_cycle]
        for mean in table.means
    ]
    values = np.array([[np.nan if value is None else value for value in row[: len(groups)]] for row in rows])
    figure, axes = _bars(groups, labels, values, colours, None)
    axes.set_ylabel("tokens per cycle")
    return svg_of(figure)


def _split(table: Table, labels: Sequence[str]) -> str:
    figure, axes = new_figure(7.5, 1.1 + 0.34 * len(labels))
    left = np.zeros(len(labels))
    for part, colour in PARTS.items():
        width = np.array([(getattr(cell, part) or 0.0) * (cell.cycle_ms or 0.0) for cell in table.pooled])
        axes.barh(labels, width, left=left, color=colour, label=part, height=0.65)
        left += width
    for place, total in enumerate(left):
        axes.text(total, place, f" {total:.1f} ms", va="center", fontsize=8)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a cycle, all sets")
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return svg_of(figure)


def _latency(measurement: Measurement, labels: Sequence[str], colours: Sequence[Any]) -> str:
    """Cumulative distributions over all answers of the wait for a delivery and for a token. The slowest per cent is not shown."""
    figure, both = new_figure(9.5, 3.4, 2)
    lines = []
    longest = 0.0
    for contender, name, colour in zip(measurement.contenders, labels, colours, strict=True):
        rounds = [answer.rounds for answer in measurement.answers if answer.contender == contender.name]
        waits = np.array([wait for each in rounds for wait in each.waits])
        counts = np.array([count for each in rounds for count in each.tokens], int)
        if not len(waits):
            continue
        for axes, values in zip(both, (waits, per_token(waits, counts)), strict=True):
            drawn = axes.plot(np.sort(1e3 * values), np.arange(1, len(values) + 1) / len(values), label=name, color=colour, lw=1.3)
        lines += drawn
        longest = max(longest, 1e3 * float(np.percentile(waits, 99)))
    for axes, what in zip(both, ("wait between two deliveries, ms", "a token's share of the wait for its delivery, ms"), strict=True):
        axes.set_xlim(0, 1.05 * longest or 1.0)
        axes.set_xlabel(what)
        axes.set_ylabel("share of all")
        axes.grid(alpha=0.3)
    figure.legend(handles=lines, fontsize=8, ncols=min(6, max(1, len(lines))), loc="outside upper center", frameon=False)
    return svg_of(figure)


def _trees(table: Table, labels: Sequence[str]) -> str:
    trees = _columns([cell.trees for cell in table.pooled])
    rows = sorted({rows for cell in table.pooled for rows in cell.rows})
    figure, both = new_figure(max(8.0, 2.5 + 0.62 * (len(trees) + len(rows))), 1.5 + 0.36 * len(labels), 2)
    _heat(both[0], [[cell.trees.get(tree, 0) for tree in trees] for cell in table.pooled], trees, table.pooled, labels)
    _heat(both[1], [[cell.rows.get(count, 0) for count in rows] for cell in table.pooled], list(map(str, rows)), table.pooled, labels)
    both[0].set_xlabel("tree requested")
    both[1].set_xlabel("rows verified")
    both[1].set_yticks([])
    return svg_of(figure)


def _columns(counts: Sequence[Any]) -> list[str]:
    """The most frequent trees, smallest first."""
    total: dict[str, int] = {}
    for each in counts:
        for tree, count in each.items():
            total[tree] = total.get(tree, 0) + count
    often = sorted(total, key=lambda tree: -total[tree])[:MAX_TREES]
    return sorted(often, key=lambda tree: tuple(map(int, tree.split(","))))


def _heat(axes: Any, counts: Sequence[Sequence[int]], columns: Sequence[str], cells: Sequence[Cell], labels: Sequence[str]) -> None:
    """Shares of each contender's rounds. A row sums to less than one if some of its trees have no column."""
    if not columns:  # nothing was decoded
        axes.set_axis_off()
        return
    totals = np.array([max(1, cell.cycles) for cell in cells])
    shares = np.array(counts, float).reshape(len(cells), len(columns)) / totals[:, None]
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (row, place), share in np.ndenumerate(shares):
        if share >= 0.005:
            axes.text(place, row, f"{100 * share:.0f}%", ha="center", va="center", fontsize=7, color="white" if share > 0.6 else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns), default=0) > 2 else 0, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
