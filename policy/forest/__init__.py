"""The closed form for several lanes: who drafts, how deep, and which candidates of all lanes get the rows of a pass."""

from .budget import RowBudget
from .history import LaneHistory

__all__ = ["LaneHistory", "RowBudget"]
