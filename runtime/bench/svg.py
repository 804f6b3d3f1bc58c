"""Plots as SVG text. The only module that imports matplotlib, and only when a plot is made."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import Any

from ..errors import BenchError


def expect_matplotlib(extra: str = "bench") -> None:
    """Raises BenchError, which names the ``extra`` to install. Call it before measuring, which may take an hour."""
    if find_spec("matplotlib") is None:
        raise BenchError(f"a report needs matplotlib — pip install 'resps[{extra}]'")


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, without pyplot, which keeps global state and looks for a display. Sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def svg_of(figure: Any) -> str:
    """SVG without the XML header, to be put into HTML. Ids are derived from the figure, so that equal data gives equal files; text is
    kept as text."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "resps", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
