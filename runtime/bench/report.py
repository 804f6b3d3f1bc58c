"""One self-contained HTML file with all tables and plots of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from .figures import tabulate
from .plots import plots
from .record import Measurement, as_dict
from .tables import TextTable, headlines, tables

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note, ul.facts { color: #555; font-size: .9rem; } ul.facts { padding-left: 1.1rem; }
li.loud { color: #b00020; font-weight: 600; }
div.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
.text { text-align: left; } th { border-bottom: 2px solid #999; }
"""


@dataclass(frozen=True)
class Findings:
    """What a run shows: on the terminal, as JSON and in the report. ``data``: plain values, figures included. ``plots``: makes SVGs by
    title; raises BenchError without matplotlib."""

    title: str
    headlines: tuple[str, ...]
    tables: tuple[TextTable, ...]
    plots: Callable[[], Mapping[str, str]]
    data: Callable[[], dict[str, Any]]


def findings_of(measurement: Measurement) -> Findings:
    """Of a run of one request at a time."""
    table = tabulate(measurement)
    return Findings(
        f"resps-bench: {measurement.engine.model} {measurement.engine.precision}",
        tuple(headlines(measurement, table)),
        tuple(tables(measurement, table)),
        partial(plots, measurement, table),
        partial(as_dict, measurement, table),
    )


def report(findings: Findings) -> str:
    """The HTML file. Raises BenchError without matplotlib."""
    first, *others = findings.tables
    figures = "".join(f"<h2>{escape(title)}</h2>\n<div class='wide'>{svg}</div>\n" for title, svg in findings.plots().items())
    title = escape(findings.title)
    # Warnings begin with words in capitals and are highlighted.
    facts = "".join(f"<li{_loud(line)}>{escape(line)}</li>" for line in findings.headlines)
    return (
        f"<!DOCTYPE html>\n<html lang='en'>\n<head><meta charset='utf-8'><title>{title}</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{title}</h1>\n<ul class='facts'>{facts}</ul>\n{_html(first)}\n{figures}"
        + "\n".join(_html(each) for each in others)
        + "\n</body>\n</html>\n"
    )


def _loud(line: str) -> str:
    return " class='loud'" if line.split(":")[0].isupper() else ""


def _html(table: TextTable) -> str:
    header = _cells(table.header, "th", table.texts)
    rows = "\n".join(f"<tr>{_cells(row, 'td', table.texts)}</tr>" for row in table.rows)
    return (
        f"<h2>{escape(table.title)}</h2>\n<p class='note'>{escape(table.note)}</p>\n"
        f"<div class='wide'><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cells(row: tuple[str, ...], tag: str, texts: int) -> str:
    return "".join(f"<{tag}{' class=text' * (place < texts)}>{escape(cell)}</{tag}>" for place, cell in enumerate(row))
