"""Which draft tree to grow next. Depends on nothing else of this project."""

from .base import Growing, GrowthPolicy, Observation, Outcome, Policy
from .cost_model import Calibration, CostModel
from .fixed import FixedPolicy
from .held import Held
from .ltd import Ltd
from .repeats import Repeats, rough_surface
from .resps import Encode, Net, Resps
from .spec import PLAIN, TreeSpec
from .surface import Surface
from .watched import Watched, watch

__all__ = [
    "PLAIN",
    "Calibration",
    "CostModel",
    "Encode",
    "FixedPolicy",
    "Growing",
    "GrowthPolicy",
    "Held",
    "Ltd",
    "Net",
    "Observation",
    "Outcome",
    "Policy",
    "Repeats",
    "Resps",
    "Surface",
    "TreeSpec",
    "Watched",
    "rough_surface",
    "watch",
]
