"""Policies that choose the draft tree of each round. The package imports nothing else of this project."""

from .base import GrowthPolicy, Observation, Outcome, PartialTree, Policy, trees_of
from .correction import CorrectedLatency, CorrectedRounds
from .cost_model import Calibration, CostModel
from .fixed import FixedPolicy
from .forest import LaneHistory, RowBudget
from .guard import Guarded
from .latency import Costs, LanesLatency, LatencyModel, RoundCosts
from .lookup import LookupGate, default_latency
from .ltd import Ltd
from .persistence import ActionPersistence
from .resps import Net, Resps
from .spec import PLAIN, TreeSpec
from .table import TablePolicy
from .watchdog import Watchdog, watch

__all__ = [
    "PLAIN",
    "Calibration",
    "CorrectedLatency",
    "CorrectedRounds",
    "CostModel",
    "Costs",
    "FixedPolicy",
    "PartialTree",
    "GrowthPolicy",
    "Guarded",
    "ActionPersistence",
    "Ltd",
    "Net",
    "Observation",
    "Outcome",
    "Policy",
    "LookupGate",
    "Resps",
    "LaneHistory",
    "LanesLatency",
    "LatencyModel",
    "RoundCosts",
    "RowBudget",
    "TablePolicy",
    "TreeSpec",
    "Watchdog",
    "default_latency",
    "trees_of",
    "watch",
]
