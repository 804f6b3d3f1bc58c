"""Which trees are considered while tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policy import TreeSpec
from policy.resps import Action, small_actions
from runtime.manifest.schema import Draft, Manifest

CPU_WIDTHS, CPU_DEPTHS, CPU_NODES = (1, 2, 3), (1, 2, 3, 4, 5, 6), 16  # a row costs there (docs/lab/passes.md)
GPU_WIDTHS = (1, 2, 4, 8)
ACTION_DEPTHS, ACTION_WIDTHS = (3, 5, 7), (4, 8)  # of what Re-SpS chooses from on a GPU


@dataclass(frozen=True)
class TreeGrid:
    """Widths and depths, and the most nodes. ``sizes``: trees that may be verified, where not every size may; ``table``: what Re-SpS may
    choose from; ``new_tokens``: of an answer."""

    widths: tuple[int, ...] = CPU_WIDTHS
    depths: tuple[int, ...] = CPU_DEPTHS
    nodes: int = CPU_NODES
    sizes: tuple[int, ...] | None = None
    table: tuple[Action, ...] = small_actions(CPU_NODES)
    new_tokens: int = 128

    @property
    def largest(self) -> list[Action]:
        """The largest tree of every width but 1."""
        deepest = max(self.depths)
        return [(self._size(TreeSpec(1, deepest, width).capacity), deepest, width) for width in self.widths if width > 1]

    def _size(self, capacity: int) -> int:
        most = min(self.nodes, capacity)
        return most if self.sizes is None else max((size for size in self.sizes if size <= most), default=1)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of nodes that LTD's size network chooses from."""
        return self.sizes or tuple(nodes for nodes in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64) if nodes <= self.nodes)

    def actions(self, static: TreeSpec) -> tuple[Action, ...]:
        """What Re-SpS chooses from, ``static``, the best fixed tree, among them."""
        usable = {action for action in self.table if action[0] == 1 or (action[2] in self.widths and action[1] <= max(self.depths))}
        return tuple(sorted(usable | {(static.nodes, static.depth, static.width)}))


def grid_for(manifest: Manifest) -> TreeGrid:
    """Trees that are worth a try with this engine."""
    draft, limits = manifest.draft, manifest.limits
    assert draft is not None
    if manifest.tensorrt is None:
        nodes = min(CPU_NODES, limits.tree_nodes)
        widths, depths = _upto(CPU_WIDTHS, draft.max_width), _upto(CPU_DEPTHS, draft.max_depth)
        return TreeGrid(widths, depths, nodes, None, small_actions(nodes))
    table = ((1, 0, 0), *action_table(manifest.tree_sizes, draft))
    depths = tuple(range(1, draft.max_depth + 1))
    return TreeGrid(_upto(GPU_WIDTHS, draft.max_width), depths, max(manifest.tree_sizes), manifest.tree_sizes, table)


def action_table(tree_sizes: Sequence[int], draft: Draft) -> tuple[Action, ...]:
    """Trees of each size that the engine was built for: shallow and deep, narrow and wide, where such trees exist."""
    wanted = {
        (nodes, min(depth, nodes - 1, draft.max_depth), min(width, draft.max_width))
        for nodes in tree_sizes
        for depth in ACTION_DEPTHS
        for width in ACTION_WIDTHS
        if nodes > 1
    }
    return tuple(sorted(each for each in wanted if each[0] <= TreeSpec(1, *each[1:]).capacity))


def _upto(values: tuple[int, ...], most: int) -> tuple[int, ...]:
    return tuple(value for value in values if value <= most)
