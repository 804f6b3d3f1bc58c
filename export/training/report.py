"""The HTML page of a training run: held-out acceptance by depth and by kind of text, loss and learning rate over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bench.svg import new_figure, svg_of

from .held_out import chain_length, comparable
from .words.corpus import Conversation

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Report:
    """``history``: the lines of log.jsonl. ``settings``: by name."""

    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    training: Sequence[Conversation]
    held_out: Sequence[Conversation]


def write_report(file: Path, report: Report) -> None:
    """Write the page as one self-contained file, in one rename."""
    import jinja2

    last = report.history[-1]
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        last=last,
        best=max(comparable(report.history, last.get("question"))),
        settings=report.settings,
        data=_data(report),
        texts=[(text, rates, chain_length(rates)) for text, rates in last["texts"].items()],
        steps=range(1, len(last["top1"]) + 1),
        acceptance=svg_of(_acceptance(report.history)),
        training=svg_of(_training(report.history)),
    )
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _data(report: Report) -> list[tuple[str, int, int, int]]:
    """Of each kind of text: conversations to train on, their tokens, and conversations held out."""
    tokens = Counter[str]()
    for each in report.training:
        tokens[each.text] += len(each)
    trained, held_out = (Counter(each.text for each in part) for part in (report.training, report.held_out))
    return [(text, trained[text], tokens[text], held_out[text]) for text in sorted(trained | held_out)]


def _acceptance(history: Sequence[Mapping[str, Any]]) -> Any:
    figure, (left, right) = new_figure(10, 3.8, 2)
    seen = [each["tokens"] / 1e6 for each in history]
    for step in range(min(len(each["top1"]) for each in history)):  # --steps may change when a run goes on
        left.plot(seen, [each["top1"][step] for each in history], marker=".", label=f"depth {step + 1}")
    for text in history[-1]["texts"]:
        known = [(at, chain_length(each["texts"][text])) for at, each in zip(seen, history, strict=True) if text in each["texts"]]
        right.plot(*zip(*known, strict=True), marker=".", label=text)
    left.set(xlabel="million tokens", ylabel="first guess accepted", title="By depth", ylim=(0, 1))
    right.set(xlabel="million tokens", ylabel="tokens per cycle of a chain", title="By kind of text")
    for axes in (left, right):
        if axes.lines:  # held-out conversations may all be too short
            axes.legend(fontsize=8)
    return figure


def _training(history: Sequence[Mapping[str, Any]]) -> Any:
    figure, (left, right) = new_figure(10, 3.0, 2)
    losses = [(each["tokens"] / 1e6, each["loss"]) for each in history if each["loss"] is not None]
    left.plot([at for at, _ in losses], [loss for _, loss in losses], marker=".")
    right.plot([each["tokens"] / 1e6 for each in history], [each["rate"] for each in history], marker=".")
    left.set(xlabel="million tokens", title="Loss in training, all steps")
    right.set(xlabel="million tokens", title="Learning rate", ylim=(0, None))
    return figure
