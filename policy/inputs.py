"""What the policies' networks read: the input x [1, F] of a network is groups of numbers side by side.

A tuning names the groups of each of its networks, in order, and their version; a network that was trained with others is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .spec import PLAIN, TreeSpec

VERSION = 1
"""Of what the groups mean."""

CAPTURED = 3  # target layers whose hidden states are in the features

WIDTHS: Mapping[str, Callable[[int, TreeSpec], int]] = {
    "target_features": lambda features, _: features,  # the captured hidden states at the last accepted token, [3H]
    "mean_target_features": lambda features, _: features // CAPTURED,  # their mean, [H]
    "level_scores": lambda _, tree: tree.width,  # the best summed log-probabilities of the last level, best first
    "tree_scores": lambda _, tree: tree.capacity - 1,  # the summed log-probabilities of all candidates, level by level
    "length": lambda *_: 1,  # log2 of the committed tokens, as a share of LENGTH_BITS (policy/ltd.py)
    "level": lambda *_: 1,  # levels grown, as a share of the largest tree's depth
}
"""Numbers of each group, by the numbers in the target's features and LTD's largest tree."""

RESPS: Mapping[str, tuple[str, ...]] = {"features": ("target_features",), "average": ("mean_target_features",)}
"""The inputs of each state of Re-SpS (policy/resps.py)."""

LTD_DEPTH, LTD_SIZE = ("level_scores", "length", "level"), ("tree_scores", "length", "level")


def width(inputs: Sequence[str], features: int = 0, tree: TreeSpec = PLAIN) -> int:
    """F of a network that reads ``inputs``. Raises KeyError for an unknown group."""
    return sum(WIDTHS[name](features, tree) for name in inputs)


def resps_state(inputs: Sequence[str]) -> str:
    """The state of Re-SpS that is made of ``inputs``. Raises KeyError if none is."""
    return {names: state for state, names in RESPS.items()}[tuple(inputs)]
