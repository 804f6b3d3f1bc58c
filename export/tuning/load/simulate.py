"""resps-tune --simulate: which policy would be installed in a GPU world, and by how much it wins. Answers and acceptance are this engine's,
only the time is the GPU's."""

from __future__ import annotations

from collections.abc import Callable

from policy import TreeSpec

from ..replay.grid import TreeGrid
from ..replay.simulation import Answers, fixed_trees
from .compare import Setting, compare, described, fastest, fit_load
from .worlds import World

PAPERS_TREE = TreeSpec(60, 9, 10)
"""EAGLE-3's default in the papers' experiments: 60 nodes, depth 8 (as they count), width 10."""
LOADS = (1, 2, 4, 8)
GRID = TreeGrid(widths=(2, 4, 10), depths=tuple(range(1, 10)), max_nodes=60, sizes=(2, 4, 6, 8, 12, 16, 24, 32, 48, 60), new_tokens=64)
"""What answers are recorded for, and the fixed trees to try."""


def simulate(world: World, train: Answers, test: Answers, progress: Callable[[int, int], None] = lambda *_: None) -> list[str]:
    """The lines that resps-tune prints. ``train``: what trees are fitted to; ``test``: what is compared."""
    trees = fixed_trees(GRID.widths, GRID.depths, GRID.max_nodes, GRID.sizes)
    setting = Setting(world.latency, trees, PAPERS_TREE, PAPERS_TREE, rows_of_a_lane=PAPERS_TREE.nodes, takes_chunks=False)
    fitted = fit_load(train, setting, LOADS)
    found = compare(test, setting, fitted, LOADS, progress)
    best = fastest(found)
    lines = [
        f"simulated, not measured: {world.described}",
        "tokens per busy second over plain decoding, and the 99th percentile of a token's time",
    ]
    lines += described(found, fitted, PAPERS_TREE)
    if best == "none":
        return [*lines, "plain decoding would be installed there: drafting gains nothing (simulated)"]
    alone = found[str(LOADS[0])]
    over = ", ".join(
        f"{alone[best].rate / alone[name].rate:.3f} times the {text}"
        for name, text in (("default", "default tree"), ("fixed", "best fixed tree"))
    )
    return [*lines, f"{best} would be installed there: with one lane {over} (simulated)"]
