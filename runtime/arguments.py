"""Checks of the arguments of a Decoder and its requests."""

from __future__ import annotations

from policy import FixedPolicy, Policy

from .engine import EngineChoice, check_one_of
from .models import check_tree_size
from .policies.registry import main_policies
from .sampling_params import SamplingParams


def check_types(params: object, policy: object) -> None:
    """Raises TypeError."""
    if not isinstance(params, SamplingParams):
        raise TypeError(f"params must be SamplingParams, not {type(params).__name__}")
    methods = ("begin", "choose", "observe")
    is_policy = not isinstance(policy, type) and all(callable(getattr(policy, method, None)) for method in methods)
    if not (policy is None or isinstance(policy, str) or is_policy):
        raise TypeError(f"policy must be a name or a Policy, not {type(policy).__name__}")


def check_policy(policy: Policy | str | None, choice: EngineChoice) -> None:
    """Raises ValueError for an unknown policy name, EngineDirError for a fixed tree of a size that the engines were not built for."""
    if isinstance(policy, FixedPolicy):
        check_tree_size(choice.manifest, policy.spec)
    elif isinstance(policy, str):
        learned = choice.tuning.learned if choice.tuning else ()
        check_one_of("policy", policy, tuple(dict.fromkeys((*main_policies(), *learned))))
