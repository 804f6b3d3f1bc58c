"""The draft-verify loop: choose, draft, verify, accept, commit, observe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from policy import GrowthPolicy, Observation, Outcome, Policy, TreeSpec

from ..drafters.base import Drafter
from ..errors import COMMIT, DRAFT, SAMPLE, VERIFY, EngineFailure
from .sampling import Pick, Scores
from .target import Target
from .tree import Tree, accept


@dataclass(frozen=True)
class Round:
    """One round. ``tokens`` in order over all rounds are the answer; ``nodes`` rows were verified; the rest are seconds."""

    tokens: tuple[int, ...]
    spec: TreeSpec
    nodes: int
    draft_seconds: float
    verify_seconds: float
    seconds: float


@dataclass(frozen=True)
class Root:
    """Where the next tree hangs: the last token chosen, not yet committed; ``features()`` gives the captured ones [3H] before it."""

    token: int
    features: Callable[[], np.ndarray]


def begin(target: Target, drafter: Drafter, prompt: Sequence[int]) -> int:
    """Keep what the caches hold of ``prompt`` from the request before; returns how many tokens that is."""
    common, target.cache_valid = target.common(prompt), False
    kept = drafter.begin(common)
    target.truncate(kept)
    return kept


def prefill(target: Target, drafter: Drafter, pick: Pick, prompt: Sequence[int]) -> Iterator[Root | None]:
    """Commit the prompt after ``begin``; yields None after each chunk but the last, then the root that holds the answer's first token."""
    for chunk, scores in target.prefill(prompt[target.length :]):
        drafter.extend(chunk, scores, range(len(chunk)))
        if target.length < len(prompt):
            yield None
        else:
            token = _pick(pick, scores, 0, target.length)
            scores.expect_numbers([0], [token])
            yield Root(token, partial(_features, scores, -1))


def rounds(target: Target, drafter: Drafter, policy: Policy, pick: Pick, root: Root, budget: int) -> Iterator[Round]:
    """Decode after ``prefill`` until ``budget`` tokens came or the context is full."""
    growth = policy if isinstance(policy, GrowthPolicy) else None
    policy.begin()
    while (room := min(budget, target.room)) > 0:
        started, past = perf_counter(), target.length
        # What the answer has no room for is not drafted, except on a device: another shape would cost more than the rows.
        deepest = (room if target.on_host else target.room) - 1
        with DRAFT:
            lookup = drafter.lookup(root.token, min(room, target.most_nodes))
            if lookup is None:
                spec = policy.choose(Observation(past, room, root.features)).within(target.most_nodes, deepest)
            else:
                spec = TreeSpec(len(lookup), len(lookup) - 1, 1)
            draft = lookup or drafter.draft(root.token, spec, growth)
        drafted = perf_counter()
        with VERIFY:
            scores = target.verify(draft)
            verified = perf_counter()
            _expect_root(scores.tree, root.token)
            verdict = accept(scores.tree, partial(_choose, pick, scores), room)
            scores.expect_numbers(verdict.path, verdict.tokens)
        with COMMIT:
            target.commit(verdict.path)
            drafter.extend((root.token, *verdict.tokens[:-1]), scores, verdict.path)
        root = Root(verdict.tokens[-1], partial(_features, scores, verdict.path[-1]))
        budget -= len(verdict.tokens)
        seconds = perf_counter() - started
        if lookup is None:
            policy.observe(Outcome(spec, len(scores.tree), len(verdict.tokens), seconds))
        yield Round(verdict.tokens, spec, len(scores.tree), drafted - started, verified - drafted, seconds)


def _expect_root(tree: Tree, token: int) -> None:
    """Nothing below another root is the target's own. Raises EngineFailure."""
    if int(tree.tokens[0]) != token:
        raise EngineFailure("the draft's tree does not hang where it should — its engine is damaged: export again", "draft")


def _choose(pick: Pick, scores: Scores, row: int) -> int:
    """The target's token after ``row``, for the position that follows the row's own."""
    return _pick(pick, scores, row, scores.past + int(scores.tree.depth[row]) + 1)


def _pick(pick: Pick, scores: Scores, row: int, position: int) -> int:
    with SAMPLE:
        return pick(scores, row, position)


def _features(scores: Scores, row: int) -> np.ndarray:
    return np.asarray(scores.features[row])
