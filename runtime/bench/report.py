"""One self-contained HTML file with all tables and plots of a measurement."""

from __future__ import annotations

from html import escape

from .figures import Table
from .plots import plots
from .record import Measurement
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


def report(measurement: Measurement, table: Table) -> str:
    """Raises BenchError without matplotlib."""
    first, *others = tables(measurement, table)
    figures = "".join(f"<h2>{escape(title)}</h2>\n<div class='wide'>{svg}</div>\n" for title, svg in plots(measurement, table).items())
    title = f"resps-bench: {measurement.engine.model} {measurement.engine.precision}"
    return (
        f"<!DOCTYPE html>\n<html lang='en'>\n<head><meta charset='utf-8'><title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{_facts(measurement, table)}\n{_html(first)}\n{figures}"
        + "\n".join(_html(each) for each in others)
        + "\n</body>\n</html>\n"
    )


def _facts(measurement: Measurement, table: Table) -> str:
    """The headlines as a list; warnings, which begin with words in capitals, are highlighted."""
    lines = headlines(measurement, table)
    return f"<ul class='facts'>{''.join(f'<li{_loud(line)}>{escape(line)}</li>' for line in lines)}</ul>"


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
