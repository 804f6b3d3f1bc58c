"""A lane: one running request with its part of the caches, and the tree that it wants in the next round."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from time import perf_counter

import numpy as np

from policy import FixedPolicy, GrowthPolicy, LaneHistory, Observation, Policy, TreeSpec

from ..backends.lane_cache import LaneCache
from ..decoding.drafter import Drafter
from ..decoding.sampling import TargetOutput
from ..decoding.tree import Acceptance, Tree, accept
from ..errors import SAMPLE
from ..request import Chunk, Request
from ..stream import ActiveRequest
from .draft import DraftLane
from .policy import LanePolicy

Delivery = Chunk | BaseException | None
"""What a lane sends its reader: chunks, and at the end None or the error that ended the request."""


@dataclass(eq=False)
class Lane:
    """One running request.

    ``context``: its longest text, in tokens. ``policy``: chooses its trees; None leaves that to the row budget. ``draft``: its part of the
    EAGLE-3 draft, None if it uses none. ``own``: a drafter without a model, for lookups or for all of its trees. ``unread``: tokens that
    must be committed before it decodes: the rest of the prompt, or of a lane that was put aside. ``root``: the last chosen token, which is
    not committed yet; None before the first. ``features``: the target's captured features [F] at the position before the root. ``history``:
    what the row budget remembers of it.
    """

    active: ActiveRequest
    request: Request
    policy: Policy | None
    context: int
    cache: LaneCache
    draft: DraftLane | None
    own: Drafter
    chunks: SimpleQueue[Delivery] = field(default_factory=SimpleQueue)
    tokens: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    root: int | None = None
    features: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    history: LaneHistory = field(default_factory=LaneHistory)
    began: float = field(default_factory=perf_counter)

    @property
    def reading(self) -> bool:
        """Whether it has tokens to commit before it decodes."""
        return bool(self.unread) or self.root is None

    @property
    def room(self) -> int:
        """Tokens that may still be generated. The last one needs no slot."""
        return min(self.request.room, self.context - self.cache.length - 1)

    @property
    def over(self) -> bool:
        """Whether the request has ended, or its reader left."""
        return self.request.is_over() or self.active.ended or not (self.reading or self.room > 0)

    def spec(self, max_nodes: int, bounds: TreeSpec, lanes: int, waiting: int) -> TreeSpec:
        """The bounds of the tree that it wants in this round. ``max_nodes``: of a tree that may be verified now. ``bounds``: the row
        budget's. ``lanes``, ``waiting``: as in `policy.Observation`."""
        wanted = bounds
        if self.policy is not None:
            look = partial(np.asarray, self.features)
            wanted = self.policy.choose(Observation(self.cache.length, self.room, look, lanes, waiting))
        return wanted.within(max_nodes, self.room - 1)

    @property
    def fault(self) -> Exception | None:
        """What its policy raised."""
        return self.policy.fault if isinstance(self.policy, LanePolicy) else None

    @property
    def plain(self) -> bool:
        """Whether it never drafts."""
        return isinstance(self.policy, FixedPolicy) and self.policy.spec.nodes == 1

    @property
    def drafts(self) -> bool:
        """Whether it drafts: its policy decides that, or what the row budget found in the last round."""
        return not self.plain and (self.policy is not None or self.history.drafting)

    @property
    def growth(self) -> GrowthPolicy | None:
        """The policy, if it decides between levels."""
        return self.policy if isinstance(self.policy, GrowthPolicy) else None

    def first_token(self, output: TargetOutput) -> Chunk:
        """Choose the first token after the prompt. Raises EngineFailure."""
        with SAMPLE:
            self.root = self.request.sampler(output, 0, self.cache.length)
        output.check_logits([0], [self.root])
        self.request.counters.prefill_seconds = perf_counter() - self.began
        return self.request.chunk((self.root,), None)

    def accepted(self, tree: Tree, output: TargetOutput) -> Acceptance:
        """The target's choices along ``tree``. Raises EngineFailure if its scores are not numbers."""

        def choose(row: int) -> int:
            with SAMPLE:
                return self.request.sampler(output, row, output.past + int(tree.depth[row]) + 1)

        found = accept(tree, choose, self.room)
        output.check_logits(found.path, found.tokens)
        return found
