"""The closed form for several lanes: who drafts, how deep, and which candidates of all lanes get the rows of a pass."""

from .budget import RowBudget
from .correction import CorrectedLatency
from .history import LaneHistory

__all__ = ["CorrectedLatency", "LaneHistory", "RowBudget"]
