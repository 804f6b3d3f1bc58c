"""Pictures as SVG text: matplotlib is loaded here, and nowhere before."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import Any

from ..errors import BenchError


def expect_matplotlib(extra: str = "bench") -> None:
    """Raises BenchError, which names the ``extra`` to install; call it before an hour of measuring."""
    if find_spec("matplotlib") is None:
        raise BenchError(f"a report needs matplotlib — pip install 'resps[{extra}]'")


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of our own, and its axes: no pyplot, which would keep state and look for a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def svg_of(figure: Any) -> str:
    """Without the XML header, to stand inside HTML. The names inside depend on the figure alone, so equal data gives equal files; text
    stays text."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "resps", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
