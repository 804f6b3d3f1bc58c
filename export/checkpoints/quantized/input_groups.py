"""Which inputs of a matrix share a scale, from the number of scales, and from group numbers (g_idx) where inputs were reordered."""

from __future__ import annotations

import numpy as np

from ...errors import CheckpointError

DEFAULT_SIZE = 128
"""Of GPTQ's and AWQ's settings in transformers."""


def group_size(inputs: int, groups: int, asked: int | None, name: str, *, numbered: bool = False) -> int:
    """Inputs that share a scale. ``asked``: what the config says, of which the last group may be shorter; -1 and None leave it open.
    ``numbered``: the checkpoint has the group of every input, so that another size than ``asked`` is no guess. Raises CheckpointError if
    the tensors contradict it."""
    if asked is not None and asked > 0 and -(-inputs // asked) == groups:
        return asked
    if groups < 1 or inputs % groups or (asked is not None and asked > 0 and groups > 1 and not numbered):
        raise CheckpointError(f"{name} has {groups} groups of scales for {inputs} inputs — the checkpoint is damaged, download it again")
    return inputs // groups


def order_of_groups(g_idx: np.ndarray, groups: int, size: int, name: str) -> np.ndarray | None:
    """The inputs in the order of their groups, int32 [inputs]; None where they are already in it. Raises CheckpointError unless group g
    has the inputs that stand at places g * size to (g + 1) * size of that order."""
    order = np.argsort(g_idx, kind="stable").astype(np.int32)
    if not np.array_equal(g_idx[order], np.arange(len(g_idx)) // size):
        raise CheckpointError(
            f"{name}: g_idx does not make {groups} groups of {size} of {len(g_idx)} inputs — the checkpoint is damaged, download it again"
        )
    return None if np.array_equal(order, np.arange(len(order))) else order
