"""The table as Markdown or as an HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from scripts.peers.figures import Row

HEADS = (
    "contender", "weights", "tokens/s", "lowest - highest", "to transformers", "to the best peer", "first token, ms", "prefill, tokens/s",
    "load, s", "peak MiB", "tokens at once", "same text", "same prefix", "same argmax", "KL",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """One line of the table, under HEADS."""
    near = row.closeness
    return [
        row.contender.name + (f" ({row.contender.note})" if row.contender.note else ""),
        row.contender.precision,
        f"{row.rate:.1f}",
        f"{row.lowest:.1f} - {row.highest:.1f}",
        _ratio(row.to_base),
        "the best peer" if row.best_peer == row.contender.name else _ratio(row.to_peer),
        f"{row.first_ms:.0f}",
        f"{row.prefill_rate:.0f}",
        f"{row.load_seconds:.1f}",
        f"{row.peak_mib:.0f}",
        f"{row.per_arrival:.2f}",
        "" if row.same is None else f"{row.same} of {row.compared}",
        "" if row.prefix is None else f"{row.prefix:.2f}",
        "" if near is None else f"{near.agreement:.3f}",
        "" if near is None else f"{near.mean_kl:.2g}",
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def notes(rows: Sequence[Row], failed: Mapping[str, str], remarks: Sequence[str]) -> list[str]:
    """Lines below the table: how busy the machine was, which contenders are missing and why, and ``remarks``."""
    busiest = max(rows, key=lambda row: row.others, default=None)
    load = [f"Other processes used at most {busiest.others:.2f} cores (median of {busiest.contender.name})."] if busiest else []
    return [*load, *(f"{name}: missing. {reason}" for name, reason in failed.items()), *remarks]


def markdown(title: str, rows: Sequence[Row], lines: Sequence[str]) -> str:
    table = [f"| {' | '.join(line)} |" for line in (HEADS, ["---"] * len(HEADS), *map(cells, rows))]
    return "\n".join([title, "", *table, "", *(f"- {line}" for line in lines)]) + "\n"


def page(title: str, rows: Sequence[Row], lines: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>\n" for row in rows)
    items = "".join(f"<li>{html.escape(line)}</li>\n" for line in lines)
    style = "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.3em .6em}"
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Engines side by side</title><style>{style}</style>\n"
        f"<p>{html.escape(title)}</p><table><tr>{head}</tr>\n{body}</table><ul>\n{items}</ul></html>\n"
    )
