"""What drafters are built from."""

from __future__ import annotations

from dataclasses import dataclass

from policy import LookupGate, RoundCosts, TreeSpec

from ..decoding.drafter import Drafter


@dataclass(frozen=True)
class DrafterParts:
    """What a drafter may be built from.

    ``model_drafter``: the drafter of the draft model, None if the kind uses none. ``latency``: of this machine, or a default; only its
    ratios matter. ``fixed_tree``: the best known fixed tree. ``prepared``: rows of the trees that a device is prepared for; None on
    the CPU, where any number will do.
    """

    model_drafter: Drafter | None
    latency: RoundCosts
    fixed_tree: TreeSpec
    prepared: tuple[int, ...] | None = None

    def gate(self) -> LookupGate:
        """What decides on the lookups of a request."""
        if self.prepared is None:
            return LookupGate(self.latency, self.fixed_tree)
        return LookupGate(self.latency, self.fixed_tree, self.prepared, exact=True)
