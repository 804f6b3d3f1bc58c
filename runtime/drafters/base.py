"""What drafters are built from."""

from __future__ import annotations

from dataclasses import dataclass

from policy import LatencyModel, TreeSpec

from ..decoding.drafter import Drafter


@dataclass(frozen=True)
class DrafterParts:
    """What a drafter may be built from.

    ``eagle``: the drafter of the EAGLE-3 model, None if the kind uses no draft model. ``latency``: of this machine, or a default; only its
    ratios matter. ``fixed_tree``: the best known fixed tree.
    """

    eagle: Drafter | None
    latency: LatencyModel
    fixed_tree: TreeSpec
