"""A page about a tuning: what the machine costs, what trees bring, what the policies choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policy import LatencyModel
from runtime.bench.svg import expect_matplotlib, new_figure, svg_of
from runtime.manifest.schema import Manifest

from .errors import TuningError
from .outcome import Tuned, label, verdict

TEMPLATE = Path(__file__).with_name("report.html.j2")
MOST_TREES, MOST_ACTIONS = 12, 14


def write_report(file: Path, manifest: Manifest, tuned: Tuned) -> None:
    """One HTML file that needs no other. Raises TuningError where it cannot be written."""
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        model=manifest.model,
        precision=manifest.precision,
        tuning=tuned.tuning,
        verdict=verdict(tuned.tuning),
        policies=policy_rows(tuned),
        trees=tree_rows(tuned),
        latency=svg_of(latency_figure(tuned.tuning.latency)),
        gains=svg_of(tree_figure(tuned)),
        actions=svg_of(action_figure(tuned)),
    )
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TuningError(f"cannot write {file}: {error.strerror} — choose another place with --report") from None


def expect_writable(file: Path) -> None:
    """Before the work that it is about: raises TuningError where the page will have no place, BenchError without matplotlib."""
    if not file.parent.is_dir():
        raise TuningError(f"there is no directory {file.parent} for the report — make it, or choose another place with --report")
    expect_matplotlib("tune")


def policy_rows(tuned: Tuned) -> list[dict[str, Any]]:
    """Rates over plain decoding, tokens per cycle, regret against the oracle and the share of its gain over the best fixed tree."""
    plain, fixed, best = (tuned.simulated[name].rate for name in ("none", "fixed", "oracle"))
    return [
        {
            "name": label(name, tuned.tuning.static),
            "clock": tuned.tuning.ratios.get(name),
            "recorded": done.rate / plain,
            "tokens": done.tokens_per_cycle,
            "regret": 1 - done.rate / best,
            "share": (done.rate - fixed) / (best - fixed) if best > fixed else 0.0,
        }
        for name, done in tuned.simulated.items()
    ]


def tree_rows(tuned: Tuned) -> list[dict[str, Any]]:
    """The best fixed trees."""
    plain = next(done.rate for tree, done in tuned.trees if tree.nodes == 1)
    return [{"tree": tree, "recorded": done.rate / plain, "tokens": done.tokens_per_cycle} for tree, done in tuned.trees[:MOST_TREES]]


def latency_figure(latency: LatencyModel) -> Any:
    """A pass by rows, a line per span; a tree by depth, a line per width."""
    figure, (left, right) = new_figure(10, 3.6, 2)
    for span, costs in zip(latency.spans, latency.verify_ms, strict=True):
        left.plot(latency.rows, costs, marker=".", label=f"{span:,} slots")
    left.set(xlabel="rows of a pass", ylabel="milliseconds", title="Target", ylim=(0, None))
    for width, costs in zip(latency.widths, latency.draft_ms, strict=True):
        right.plot(latency.depths, costs, marker=".", label=f"width {width}")
    right.set(xlabel="depth of the tree", title="Draft, with the catch-up before it", ylim=(0, None))
    left.legend()
    right.legend()
    return figure


def tree_figure(tuned: Tuned) -> Any:
    """Of every size and width the depth that brings most: tokens per cycle, and the rate over plain decoding."""
    figure, (left, right) = new_figure(10, 3.6, 2)
    plain = next(done.rate for tree, done in tuned.trees if tree.nodes == 1)
    for width in sorted({tree.width for tree, _ in tuned.trees if tree.nodes > 1}):
        sizes = sorted({tree.nodes for tree, _ in tuned.trees if tree.nodes > 1 and tree.width == width})
        of_size = [[done for tree, done in tuned.trees if (tree.nodes, tree.width) == (nodes, width)] for nodes in sizes]
        left.plot(sizes, [max(done.tokens_per_cycle for done in group) for group in of_size], marker=".", label=f"width {width}")
        right.plot(sizes, [max(done.rate for done in group) / plain for group in of_size], marker=".", label=f"width {width}")
    left.set(xlabel="nodes, root included", ylabel="tokens per cycle", title="What fixed trees bring")
    right.set(xlabel="nodes, root included", ylabel="tokens/s over plain decoding", title="and what that is worth")
    right.axhline(1, color="grey", linewidth=0.8)
    left.legend()
    return figure


def action_figure(tuned: Tuned) -> Any:
    """How often each policy verified which tree, as shares of its rounds."""
    chosen = {name: done for name, done in tuned.simulated.items() if name not in ("none", "fixed")}
    figure, axes = new_figure(2.6 * len(chosen), 4.2, len(chosen))
    for axis, (name, done) in zip(axes, chosen.items(), strict=True):
        most = done.trees.most_common(MOST_ACTIONS)[::-1]
        axis.barh([f"{nodes},{depth},{width}" for (nodes, depth, width), _ in most], [100 * count / done.cycles for _, count in most])
        axis.set(title=label(name, tuned.tuning.static), xlabel="% of rounds")
        axis.tick_params(labelsize=8)
    return figure
