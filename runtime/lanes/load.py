"""Builds the lanes of an engine directory: the forest with its caches and graphs, and what each request needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from policy import CorrectedLatency, LatencyModel, LookupGate, Policy, RowBudget, TreeSpec

from ..backends.base import Backend
from ..backends.lane_cache import LaneCache
from ..constraints.drafter import constrained_drafter
from ..decoding.drafter import Drafter
from ..decoding.gumbel import MakeSampler, host_samplers
from ..drafters.ngram import NgramDrafter
from ..drafters.none import NoDrafter
from ..drafters.suffix import SuffixDrafter
from ..engine import LoadedEngine
from ..manifest.schema import Draft, Manifest
from ..models import with_past
from ..policies.registry import COST_MODEL
from ..request import Chunk, Request
from ..stream import ActiveRequest
from .choose import draft_slots
from .draft import DraftLane, LanesDraft
from .driver import Driver
from .forest import Forest
from .lane import Lane
from .plan import Planner
from .policy import lane_policy
from .target import LanesTarget

ROWS_OF_A_LANE = 8
"""Rows that the row budget may give to each lane on average."""


@dataclass(frozen=True)
class Lanes:
    """The lanes of one Decoder. ``make_sampler``: makes the Sampler of a request. ``_make_own``: makes a lane's drafter without a model."""

    driver: Driver
    make_sampler: MakeSampler
    _make_own: Callable[[], Drafter]

    def start(self, active: ActiveRequest, request: Request, policy: Policy | None) -> Iterator[Chunk]:
        """Begin a request; returns its chunks. ``policy``: None leaves its trees to the row budget. Raises DecoderClosed."""
        forest = self.driver.forest
        policy = None if policy is None else lane_policy(policy, forest.budget.latency)
        request.open(forest.tokenizer)
        draft = DraftLane(LaneCache(forest.draft.cache)) if forest.draft else None
        own = constrained_drafter(with_past(self._make_own(), request.past), request.constraint, policy)
        lane = Lane(active, request, policy, forest.limits.context, LaneCache(forest.target.cache), draft, own)
        if lane.plain:
            lane.draft, lane.own = None, NoDrafter()
        return self.driver.start(lane)

    def __del__(self) -> None:
        self.driver.release()


def by_budget(lanes: int, policy: Policy | str | None) -> bool:
    """Whether the row budget sizes the trees of requests with this policy: with several lanes it is the cost model, and the default."""
    return lanes > 1 and (policy is None or policy == COST_MODEL)


def load_lanes(engine: LoadedEngine, lanes: int, costs: CorrectedLatency) -> Lanes:
    """Load the graphs with lanes, after `choose_lanes` found that the engine has them. ``costs``: of rounds, corrected by them."""
    choice, manifest, backend = engine.choice, engine.choice.manifest, engine.backend
    kind = choice.drafter
    target = LanesTarget(*backend.lanes("target_lanes", lanes, manifest.limits.capacity))
    if backend.memory.on_host:
        target.use_one_kernel()
    draft = _load_draft(backend, manifest, manifest.draft, lanes) if manifest.draft and kind.uses_draft_model else None
    tree = choice.fixed_tree
    if draft is not None:  # the row budget decides how many levels and nodes
        _, depth, width = choice.tuning.cost_model.tree if choice.tuning and choice.tuning.cost_model else (0, tree.depth, tree.width)
        tree = TreeSpec(min(manifest.limits.tree_nodes, TreeSpec(1, depth, width).capacity), depth, width)
    budget = RowBudget(costs, ROWS_OF_A_LANE * lanes)
    planner = Planner(target, draft, manifest.limits, budget, tree)
    own = _own_drafters(kind.name, choice.latency, choice.fixed_tree)
    return Lanes(Driver(Forest(planner, engine.tokenizer)), host_samplers(manifest.shape.vocab), own)


def _load_draft(backend: Backend, manifest: Manifest, draft: Draft, lanes: int) -> LanesDraft:
    limits = manifest.limits
    fuse = backend.engine("fuse", {}, {"n": limits.prefill_rows, "m": limits.prefill_rows})
    graph = backend.lanes("draft_lanes", lanes, draft_slots(limits, draft))
    return LanesDraft(fuse, *graph, draft, limits.prefill_rows, backend.memory.on_host)


def _own_drafters(kind: str, latency: LatencyModel, tree: TreeSpec) -> Callable[[], Drafter]:
    if kind == "ngram":
        return NgramDrafter
    if kind == "eagle+ngram":
        return lambda: SuffixDrafter(NoDrafter(), LookupGate(latency, tree))
    return NoDrafter
