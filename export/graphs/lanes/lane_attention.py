"""What the two forms of attention over several lanes have in common."""

from __future__ import annotations

from abc import abstractmethod

from ..layers import LayerWriter


class LaneAttention(LayerWriter):
    """Writes attention for rows of several lanes."""

    @abstractmethod
    def _lane_inputs(self) -> None:
        """Declare the inputs that say where rows lie and what they attend to, and write the nodes that all layers share. ``positions``
        [1,N] is declared before."""
