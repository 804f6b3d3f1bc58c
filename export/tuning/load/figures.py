"""The figures of the report by load: what each policy brings, who got the rows, and how far it is from the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policy import TreeSpec
from runtime.bench.svg import new_figure, svg_of

from .compare import BOUNDS, CAUSAL, DAY, Fitted, Results, fastest, rows_of, trees_by_load
from .simulation import LoadResult

TEMPLATE = Path(__file__).with_name("load.html.j2")
_STEPS = 120  # points of a line over time


def load_section(found: Results, fitted: Fitted, default: TreeSpec, world: str = "") -> str:
    """The report by load, as a part of an HTML page. ``world``: which GPU it is, if the costs are simulated."""
    import jinja2

    loads, best = [load for load in found if load != DAY], fastest(found)
    best = best if best not in ("none", "table") else "cost-model"
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text: str = page.render(
        world=world,
        loads=[_with_unit(load) for load in found],
        rows=[{"name": name, "cells": cells} for name, cells in rows_of(found, fitted, default)],
        trees=trees_by_load(found, fitted),
        most=loads[-1],
        speed=svg_of(speed_figure(found, loads)),
        day=svg_of(day_figure(found[DAY], best)),
        shares=svg_of(share_figure(found[loads[-1]], ("table", best))),
        regret=svg_of(regret_figure(found)),
    )
    return text


def _with_unit(load: str) -> str:
    return load if load == DAY else "1 lane" if load == "1" else f"{load} lanes"


def speed_figure(found: Results, loads: Sequence[str]) -> Any:
    """Tokens per busy second over plain decoding, and the 99th percentile of a token's time, by number of lanes."""
    figure, (left, right) = new_figure(10, 3.6, 2)
    lanes = [int(load) for load in loads]
    for name in (*CAUSAL, *BOUNDS):
        style = "--" if name in BOUNDS else "-"
        left.plot(lanes, [found[load][name].rate / found[load]["none"].rate for load in loads], style, marker=".", label=name)
        if name in CAUSAL:
            right.plot(lanes, [found[load][name].p99 for load in loads], style, marker=".", label=name)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(lanes, [str(count) for count in lanes])
        axis.set(xlabel="lanes that are always taken")
    left.set(title="Tokens per busy second over plain decoding")
    right.set(title="99th percentile of a token's milliseconds", ylim=(0, None))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return figure


def day_figure(day: Mapping[str, LoadResult], best: str) -> Any:
    """Above, requests that arrived, ran and waited over the day; below, the rows of a pass for the best policy and the table."""
    figure, (above, below) = new_figure(10, 4.2, rows=2)
    times = day[best].arrivals
    end = max(result.rounds[-1].at for result in day.values()) / 1000
    edges = [end * at / _STEPS for at in range(_STEPS + 1)]
    above.hist([time / 1000 for time in times], bins=_STEPS // 4, range=(0, end), color="silver", label="arrivals")
    above.plot(edges[1:], _means(day[best], edges, "lanes"), label="running")
    above.plot(edges[1:], _means(day[best], edges, "waiting"), label="waiting")
    above.set(ylabel="requests", xlim=(0, end))
    for name in ("table", best):
        below.plot(edges[1:], _means(day[name], edges, "rows"), label=name)
    below.set(xlabel="seconds", ylabel="rows of a pass", xlim=(0, end), ylim=(0, None))
    above.legend(fontsize=7)
    below.legend(fontsize=7)
    return figure


def _means(result: LoadResult, edges: Sequence[float], what: str) -> list[float]:
    """The mean of a number over the rounds of each interval; 0 where nothing ran."""
    sums, counts = [0.0] * (len(edges) - 1), [0] * (len(edges) - 1)
    for each in result.rounds:
        at = min(int(each.at / 1000 / edges[1]), len(sums) - 1)
        sums[at] += getattr(each, what)
        counts[at] += 1
    return [total / count if count else 0.0 for total, count in zip(sums, counts, strict=True)]


def share_figure(results: Mapping[str, LoadResult], names: Sequence[str]) -> Any:
    """A point for each request at the highest load: drafted rows a round that it got, against how many of those were accepted."""
    figure, axes = new_figure(10, 3.2, len(names))
    most = max((share.drafted / share.rounds for name in names for share in results[name].shares), default=0.0)
    for axis, name in zip(axes, names, strict=True):
        shares = [share for share in results[name].shares if share.drafted]
        accepted = [share.accepted / share.drafted for share in shares]
        axis.scatter(accepted, [share.drafted / share.rounds for share in shares], s=14)
        axis.set(
            xlabel="share of its drafted rows that were accepted",
            ylabel="drafted rows a round",
            title=name,
            xlim=(0, 1),
            ylim=(0, 1.05 * most or 1),
        )
    return figure


def regret_figure(found: Results) -> Any:
    """The speed that each policy loses against the one that knows the answers, by load."""
    figure, axis = new_figure(10, 3.0)
    names = [name for name in (*CAUSAL, *BOUNDS) if name != BOUNDS[-1]]
    for at, name in enumerate(names):
        lost = [100 * (1 - results[name].rate / results[BOUNDS[-1]].rate) for results in found.values()]
        axis.bar([place + 0.8 * at / len(names) for place in range(len(found))], lost, 0.8 / len(names), label=name)
    axis.set_xticks([place + 0.35 for place in range(len(found))], [_with_unit(load) for load in found])
    axis.set(ylabel="% lost against the oracle")
    axis.legend(fontsize=7)
    return figure
