"""The HTML report of a tuning: measured latencies, what fixed trees gain, and which trees the policies chose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from policy import LatencyModel, TreeSpec
from runtime.bench.svg import expect_matplotlib, new_figure, svg_of
from runtime.manifest.schema import Manifest

from .errors import TuningError
from .load.compare import Fitted, Results
from .load.figures import load_section
from .outcome import TuningResult, label, verdict

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_TREES, MAX_ACTIONS = 12, 14  # rows of the table of trees, bars of each chart of chosen trees


def write_report(file: Path, manifest: Manifest, result: TuningResult, load: tuple[Results, Fitted, TreeSpec] | None) -> None:
    """Write the report as one self-contained HTML file. ``load``: what several lanes would gain, what was fitted to find out, and the
    default tree. Raises TuningError if it cannot be written."""
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        model=manifest.model,
        precision=manifest.precision,
        tuning=result.tuning,
        verdict=verdict(result.tuning),
        sampled=verdict(result.tuning.for_temperature(1.0)) if result.tuning.sampled else "",
        policies=policy_rows(result),
        trees=tree_rows(result),
        latency=svg_of(latency_figure(result.tuning.latency)),
        gains=svg_of(tree_figure(result)),
        actions=svg_of(action_figure(result)),
        load=load_section(*load) if load else "",
    )
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TuningError(f"cannot write {file}: {error.strerror} — choose another place with --report") from None


def expect_writable(file: Path) -> None:
    """Check, before a long tuning, that its report can be written. Raises TuningError if the directory is missing or may not be
    written, BenchError without matplotlib."""
    if not file.parent.is_dir():
        raise TuningError(f"there is no directory {file.parent} for the report — make it, or choose another place with --report")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise TuningError(f"cannot write {file}: no permission — choose another place with --report")
    expect_matplotlib("tune")


def policy_rows(result: TuningResult) -> list[dict[str, Any]]:
    """For each policy: rates over plain decoding, tokens per cycle, regret against the oracle, the share of the oracle's gain over the best
    fixed tree, and the interval over that tree."""
    sampled = result.tuning.sampled.ratios if result.tuning.sampled else {}
    plain, fixed, best = (result.simulated[name].rate for name in ("none", "fixed", "oracle"))
    return [
        {
            "name": label(name, result.tuning.static),
            "clock": result.tuning.ratios.get(name),
            "recorded": replay.rate / plain,
            "tokens": replay.tokens_per_cycle,
            "regret": 1 - replay.rate / best,
            "interval": result.tuning.intervals.get(name),
            "sampled": sampled.get(name),
            "share": (replay.rate - fixed) / (best - fixed) if best > fixed else 0.0,
        }
        for name, replay in result.simulated.items()
    ]


def tree_rows(result: TuningResult) -> list[dict[str, Any]]:
    """The best fixed trees: rate over plain decoding and tokens per cycle."""
    plain = _plain_rate(result)
    return [{"tree": tree, "recorded": replay.rate / plain, "tokens": replay.tokens_per_cycle} for tree, replay in result.trees[:MAX_TREES]]


def _plain_rate(result: TuningResult) -> float:
    return next(replay.rate for tree, replay in result.trees if tree.nodes == 1)


def latency_figure(latency: LatencyModel) -> Any:
    """Milliseconds of a target pass by rows, a line for each context; of drafting by depth, a line for each width."""
    figure, (left, right) = new_figure(10, 3.6, 2)
    for span, costs in zip(latency.spans, latency.verify_ms, strict=True):
        left.plot(latency.rows, costs, marker=".", label=f"{span:,} slots")
    left.set(xlabel="rows of a pass", ylabel="milliseconds", title="Target", ylim=(0, None))
    for width, costs in zip(latency.widths, latency.draft_ms, strict=True):
        right.plot(latency.depths, costs, marker=".", label=f"width {width}")
    right.set(xlabel="depth of the tree", title="Draft, with the catch-up before it", ylim=(0, None))
    left.legend()
    right.legend()
    _count_in_whole_numbers(left, right)
    return figure


def _count_in_whole_numbers(*axes: Any) -> None:
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)


def tree_figure(result: TuningResult) -> Any:
    """Tokens per cycle and rate over plain decoding by tree size, a line for each width, at the best depth for each size."""
    figure, (left, right) = new_figure(10, 3.6, 2)
    plain = _plain_rate(result)
    for width in sorted({tree.width for tree, _ in result.trees if tree.nodes > 1}):
        sizes = sorted({tree.nodes for tree, _ in result.trees if tree.nodes > 1 and tree.width == width})
        by_size = [[replay for tree, replay in result.trees if (tree.nodes, tree.width) == (nodes, width)] for nodes in sizes]
        left.plot(sizes, [max(replay.tokens_per_cycle for replay in group) for group in by_size], marker=".", label=f"width {width}")
        right.plot(sizes, [max(replay.rate for replay in group) / plain for group in by_size], marker=".", label=f"width {width}")
    left.set(xlabel="nodes, root included", ylabel="tokens per cycle", title="Tokens per cycle of fixed trees")
    right.set(xlabel="nodes, root included", ylabel="tokens/s over plain decoding", title="Speed of fixed trees")
    right.axhline(1, color="grey", linewidth=0.8)
    left.legend()
    _count_in_whole_numbers(left, right)
    return figure


def action_figure(result: TuningResult) -> Any:
    """The trees that each policy verified most often, as shares of its rounds."""
    policies = {name: replay for name, replay in result.simulated.items() if name not in ("none", "fixed")}
    figure, axes = new_figure(2.6 * len(policies), 4.2, len(policies))
    for axis, (name, replay) in zip(axes, policies.items(), strict=True):
        counts = replay.trees.most_common(MAX_ACTIONS)[::-1]
        axis.barh([f"{nodes},{depth},{width}" for (nodes, depth, width), _ in counts], [100 * count / replay.cycles for _, count in counts])
        axis.set(title=label(name, result.tuning.static), xlabel="% of rounds")
        axis.tick_params(labelsize=8)
    return figure
