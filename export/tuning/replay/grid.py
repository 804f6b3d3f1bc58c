"""The trees that resps-tune considers for an engine: widths, depths, sizes, and the actions of the learned policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policy import TreeSpec
from policy.resps import Action, cpu_actions
from runtime.manifest.schema import Draft, Manifest

CPU_WIDTHS, CPU_DEPTHS, CPU_NODES = (1, 2, 3), (1, 2, 3, 4, 5, 6), 16  # small, because every row costs time on a CPU (docs/lab/passes.md)
GPU_WIDTHS = (1, 2, 4, 8)
ACTION_DEPTHS, ACTION_WIDTHS = (3, 5, 7), (4, 8)  # of Re-SpS' actions on a GPU


@dataclass(frozen=True)
class TreeGrid:
    """The trees to consider: every combination of ``widths`` and ``depths`` with up to ``max_nodes`` nodes (root included).

    ``sizes``: the numbers of nodes that may be verified; None if every number may. ``action_table``: the trees that Re-SpS may choose from.
    ``new_tokens``: length of the recorded answers.
    """

    widths: tuple[int, ...] = CPU_WIDTHS
    depths: tuple[int, ...] = CPU_DEPTHS
    max_nodes: int = CPU_NODES
    sizes: tuple[int, ...] | None = None
    action_table: tuple[Action, ...] = cpu_actions(CPU_NODES)
    new_tokens: int = 128

    @property
    def largest_trees(self) -> list[Action]:
        """The largest tree of every width but 1."""
        depth = max(self.depths)
        return [(self._largest_size(TreeSpec(1, depth, width).capacity), depth, width) for width in self.widths if width > 1]

    def _largest_size(self, capacity: int) -> int:
        limit = min(self.max_nodes, capacity)
        return limit if self.sizes is None else max((size for size in self.sizes if size <= limit), default=1)

    @property
    def ltd_sizes(self) -> tuple[int, ...]:
        """The numbers of nodes that LTD's size network chooses from."""
        return self.sizes or tuple(nodes for nodes in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64) if nodes <= self.max_nodes)

    def actions(self, fixed_tree: TreeSpec) -> tuple[Action, ...]:
        """The trees that Re-SpS chooses from: those of the table within the grid, and ``fixed_tree``."""
        usable = {action for action in self.action_table if action[0] == 1 or (action[2] in self.widths and action[1] <= max(self.depths))}
        return tuple(sorted(usable | {(fixed_tree.nodes, fixed_tree.depth, fixed_tree.width)}))


def grid_for(manifest: Manifest) -> TreeGrid:
    """The grid for an engine: small trees on a CPU; on a GPU the sizes that TensorRT profiles were built for."""
    draft, limits = manifest.draft, manifest.limits
    assert draft is not None
    if manifest.tensorrt is None:
        nodes = min(CPU_NODES, limits.tree_nodes)
        widths, depths = _at_most(draft.max_width, CPU_WIDTHS), _at_most(draft.max_depth, CPU_DEPTHS)
        return TreeGrid(widths, depths, nodes, None, cpu_actions(nodes))
    actions = ((1, 0, 0), *gpu_actions(manifest.tree_sizes, draft))
    depths = tuple(range(1, draft.max_depth + 1))
    return TreeGrid(_at_most(draft.max_width, GPU_WIDTHS), depths, max(manifest.tree_sizes), manifest.tree_sizes, actions)


def gpu_actions(tree_sizes: Sequence[int], draft: Draft) -> tuple[Action, ...]:
    """Re-SpS' actions on a GPU: for each size that the engine was built for, shallow and deep, narrow and wide trees, where they exist."""
    actions = {
        (nodes, min(depth, nodes - 1, draft.max_depth), min(width, draft.max_width))
        for nodes in tree_sizes
        for depth in ACTION_DEPTHS
        for width in ACTION_WIDTHS
        if nodes > 1
    }
    return tuple(sorted(action for action in actions if action[0] <= TreeSpec(1, *action[1:]).capacity))


def _at_most(limit: int, values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value for value in values if value <= limit)
