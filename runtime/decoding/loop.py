"""The draft-verify loop: choose, draft, verify, accept, commit, observe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from policy import GrowthPolicy, Observation, Outcome, Policy, TreeSpec

from ..errors import COMMIT, DRAFT, SAMPLE, VERIFY, EngineFailure
from .drafter import Drafter
from .sampling import Sampler, TargetOutput
from .target import Target
from .tree import Tree, accept


@dataclass(frozen=True)
class Round:
    """One round of one request.

    ``tokens``: what it adds to the answer. ``spec``: the requested tree. ``tree``: the verified one. ``path``: its accepted rows, from the
    root down. ``started``: by the clock perf_counter. Times in seconds; requests that share a round have the same ones.
    """

    tokens: tuple[int, ...]
    spec: TreeSpec
    tree: Tree
    path: tuple[int, ...]
    started: float
    draft_seconds: float
    verify_seconds: float
    seconds: float

    @property
    def nodes(self) -> int:
        """Verified rows."""
        return len(self.tree)


@dataclass(frozen=True)
class Root:
    """The root of the next tree: the last chosen token, which is not committed yet. ``read_features()`` returns the target's captured
    features [3H] at the position before it; valid until the next pass."""

    token: int
    read_features: Callable[[], np.ndarray]


def begin(target: Target, drafter: Drafter, prompt: Sequence[int]) -> int:
    """Start a request: keep the prefix of ``prompt`` that both caches hold. Returns its length in tokens."""
    prefix, target.cache_valid = target.cached_prefix(prompt), False
    kept = drafter.begin(prefix)
    target.truncate(kept)
    return kept


def prefill(target: Target, drafter: Drafter, sampler: Sampler, prompt: Sequence[int]) -> Iterator[Root | None]:
    """Commit the rest of the prompt after ``begin``. Yields None after each chunk but the last, then the root with the first new token."""
    for chunk, output in target.prefill(prompt[target.length :]):
        drafter.extend(chunk, output, range(len(chunk)))
        if target.length < len(prompt):
            yield None
        else:
            token = _sample(sampler, output, 0, target.length)
            output.check_logits([0], [token])
            yield Root(token, partial(_features, output, -1))


def rounds(target: Target, drafter: Drafter, policy: Policy, sampler: Sampler, root: Root, budget: int) -> Iterator[Round]:
    """Decode after ``prefill`` until ``budget`` tokens were generated or the context is full."""
    growth = policy if isinstance(policy, GrowthPolicy) else None
    policy.begin()
    unread: int | None = None  # committed tokens that the draft has not read; all before the first round
    while (room := min(budget, target.room)) > 0:
        started, past = perf_counter(), target.length
        unread = past if unread is None else unread
        # Clip the tree to the remaining budget, except on a device, where another shape costs more than the rows.
        max_depth = (room if target.on_host else target.room) - 1
        with DRAFT:
            lookup = drafter.lookup(root.token, min(room, target.max_nodes))
            if lookup is None:
                spec = policy.choose(Observation(past, room, root.read_features)).within(target.max_nodes, max_depth)
            else:
                spec = TreeSpec(len(lookup), len(lookup) - 1, 1)
            draft = lookup or drafter.draft(root.token, spec, growth)
        drafted = perf_counter()
        with VERIFY:
            output = target.verify(draft)
            verified = perf_counter()
            _check_root(output.tree, root.token)
            accepted = accept(output.tree, partial(_choose, sampler, output), room)
            output.check_logits(accepted.path, accepted.tokens)
        chosen = perf_counter()
        with COMMIT:
            target.commit(accepted.path)
            drafter.extend((root.token, *accepted.tokens[:-1]), output, accepted.path)
        root = Root(accepted.tokens[-1], partial(_features, output, accepted.path[-1]))
        budget -= len(accepted.tokens)
        seconds = perf_counter() - started
        if lookup is None:
            apart = verified - drafted if target.on_host else None
            policy.observe(Outcome(spec, len(output.tree), len(accepted.tokens), seconds, apart, seconds - (chosen - drafted), unread))
            unread = 0 if spec.depth else unread
        unread += len(accepted.tokens)
        yield Round(accepted.tokens, spec, output.tree, accepted.path, started, drafted - started, verified - drafted, seconds)


def _check_root(tree: Tree, token: int) -> None:
    """Raises EngineFailure for a tree with another root: tokens accepted below it would not be the target's."""
    if int(tree.tokens[0]) != token:
        raise EngineFailure("the draft tree has the wrong root token — the draft engine is damaged: export again", "draft")


def _choose(sampler: Sampler, output: TargetOutput, row: int) -> int:
    """The target's token after ``row``, for the position after the row's own."""
    return _sample(sampler, output, row, output.past + int(output.tree.depth[row]) + 1)


def _sample(sampler: Sampler, output: TargetOutput, row: int, position: int) -> int:
    with SAMPLE:
        return sampler(output, row, position)


def _features(output: TargetOutput, row: int) -> np.ndarray:
    return np.asarray(output.features[row])
