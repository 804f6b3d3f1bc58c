"""Which draft tree to grow next. Depends on nothing else of this project."""

from .base import Observation, Outcome, Policy
from .fixed import FixedPolicy
from .spec import PLAIN, TreeSpec

__all__ = ["PLAIN", "FixedPolicy", "Observation", "Outcome", "Policy", "TreeSpec"]
