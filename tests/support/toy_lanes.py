"""A toy target with lanes: the contract of the graph `target_lanes` in numpy, without weights. Any mistake in pages, masks, positions or
commits fails the pass or changes its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from policy import CorrectedLatency, LookupGate, Policy, RowBudget, TreeSpec, default_latency
from runtime.backends.cpu.paged_cache import PagedCache, pages_of
from runtime.backends.cpu.paged_inputs import pages_bound, with_chunk
from runtime.backends.lane_cache import LaneCache, LaneRows, shares
from runtime.constraints.drafter import constrained_drafter
from runtime.decoding.drafter import Drafter
from runtime.decoding.gumbel import host_samplers
from runtime.decoding.totals import TotalsRecorder
from runtime.drafters.none import NoDrafter
from runtime.drafters.suffix import SuffixDrafter
from runtime.errors import EngineFailure
from runtime.lanes.draft import DraftLane, LanesDraft
from runtime.lanes.forest import Forest
from runtime.lanes.lane import Lane
from runtime.lanes.plan import Planner
from runtime.lanes.target import LanesTarget
from runtime.manifest.schema import Limits
from runtime.request import Chunk, Request
from runtime.sampling_params import SamplingParams
from runtime.stream import ActiveRequest

from .constraints import toy_constraint
from .fakes import HIDDEN, VOCAB, toy_logits
from .plain_sampling import plain_answer, toy_rules

LIMITS = Limits(context=400, capacity=464, tree_nodes=64, prefill_rows=48, span_step=16)
SAMPLERS = host_samplers(VOCAB)
STOP = frozenset({VOCAB - 1})


@dataclass
class ToyLanesEngine:
    """The key of a slot is (token, position + 1). ``broken``: raises for a pass that holds a row of this token. ``nan``: rows of this token
    have scores that are not numbers, and so have all rows that attend to one."""

    cache: PagedCache
    broken: int | None = None
    nan: int | None = None
    passes: list[int] = field(default_factory=list)  # lanes of each
    takes_chunks: bool = True

    def run(
        self, rows: Sequence[LaneRows], hidden: np.ndarray | None = None, width: int = 0, chunk_last: bool = False
    ) -> list[dict[str, np.ndarray]]:
        pages = pages_bound(rows)
        inputs = with_chunk(rows, pages, self.cache.heads, chunk_last)
        tokens, positions = inputs["tokens"][0], inputs["positions"][0]
        if self.broken in tokens:
            raise EngineFailure("a pass failed inside the toy")
        keys = self.cache.tensors(pages)["past.0.key"]
        page, _, slot = inputs["places"][:, 0].T
        keys[page, 0, slot, 0], keys[page, 0, slot, 1] = tokens, positions + 1
        lanes, widest = len(inputs["pages"]), inputs["queries"].shape[1]
        self.passes.append(lanes + chunk_last)
        logits = np.empty((1, len(tokens), VOCAB), np.float32)
        features = np.empty((1, len(tokens), 3 * HIDDEN), np.float32)
        for row in range(len(tokens)):
            lane, column = divmod(int(inputs["flat"][row]), widest)
            if chunk_last and row >= len(tokens) - len(rows[-1]):
                own, column, attend = inputs["chunk_pages"], int(inputs["flat"][row]) - lanes * widest, inputs["chunk_attend"]
                assert inputs["chunk"][column] == row
                slots = keys[own, 0][attend[:, column]]
            else:
                own = inputs["pages"][lane][inputs["counted"][lane, 0] > 0]
                assert (inputs["owner"][own] == lane).all()
                assert (inputs["queries"][own, column] == row).all()
                slots = keys[own, 0][inputs["attend"][own, column]]
            seen = sorted((int(position) - 1, int(token)) for token, position in slots)
            assert [at for at, _ in seen] == list(range(int(positions[row]) + 1)), (row, positions[row], seen)
            context = [token for _, token in seen]
            logits[0, row] = np.nan if self.nan in context else toy_logits(context)
            features[0, row] = [positions[row], tokens[row]] * 3
        chosen = logits[:, inputs["rows"]]
        best = np.nan_to_num(chosen).argmax(-1)
        return [{"logits": chosen[:, own["r"]], "next_token": best[:, own["r"]], "features": features[:, own["N"]]} for own in shares(rows)]


class ToyLanesDraft(LanesDraft):
    """Drafts random candidates, and now and then the target's own next token. Its pages are taken and freed like those of a real draft.
    It is its own engine."""

    def __init__(self, cache: PagedCache, seed: int) -> None:
        self.cache, self.chunk, self.max_depth, self.max_width, self._window = cache, 16, 6, 4, 64
        self._random = np.random.default_rng(seed)
        self._engine, self.failing = self, False

    def _fused(self, features: np.ndarray) -> np.ndarray:
        return features[:, :2]

    def run(self, lanes: Sequence[LaneRows], hidden: np.ndarray | None = None, width: int = 0) -> list[dict[str, np.ndarray]]:
        assert hidden is not None
        assert max(map(len, lanes)) <= self.chunk
        if self.failing and self._random.random() < 0.3:
            raise EngineFailure("a draft pass failed inside the toy")
        heads = sum(len(lane.heads) for lane in lanes)
        log_probs = -np.sort(self._random.exponential(size=(heads, width))).astype(np.float32)
        if self.failing and self._random.random() < 0.2:
            log_probs[0] = np.nan
        candidates = np.stack([self._random.permutation(VOCAB)[:width] for _ in range(heads)])
        return [
            {"log_probs": log_probs[own["r"]], "candidates": candidates[own["r"]], "next_hidden": hidden[None, own["N"]]}
            for own in shares(lanes)
        ]


class ToyTokenizer:
    """Every token is a letter."""

    hidden: Mapping[int, str] = {}

    def token_bytes(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        return bytes([97 + token])


def toy_forest(lanes: int = 4, *, draft: bool = True, pages: int | None = None, seed: int = 0) -> Forest:
    """A forest over the toy target. ``pages``: of each cache [default: what all lanes need at full length]."""
    count = pages or lanes * pages_of(LIMITS.capacity)
    cache = PagedCache(1, 1, 2, np.dtype(np.float32), count)
    target = LanesTarget(ToyLanesEngine(cache), cache)  # type: ignore[arg-type]
    drafting = ToyLanesDraft(PagedCache(1, 1, 2, np.dtype(np.float32), count), seed) if draft else None
    budget = RowBudget(CorrectedLatency(default_latency(False).for_lanes()), 8 * lanes)
    return Forest(Planner(target, drafting, LIMITS, budget, TreeSpec(31, 4, 3)), ToyTokenizer())  # type: ignore[arg-type]


def toy_lane(
    forest: Forest,
    prompt: Sequence[int],
    params: SamplingParams,
    policy: Policy | None = None,
    own: Drafter | None = None,
    recorder: TotalsRecorder | None = None,
) -> Lane:
    """A lane that is ready to be admitted. ``own``: its drafter without a model [default: lookups]. ``recorder``: of its Decoder."""
    constraint = toy_constraint(params)
    sampler = SAMPLERS(params, toy_rules(params, prompt, STOP, constraint))
    request = Request(list(prompt), params, sampler, policy, STOP, constraint=constraint)  # type: ignore[arg-type]
    request.open(forest.tokenizer)
    draft = DraftLane(LaneCache(forest.draft.cache)) if forest.draft and own is None else None
    own = own or (SuffixDrafter(NoDrafter(), LookupGate(default_latency(False), TreeSpec(5, 3, 2))) if draft else NoDrafter())
    own = constrained_drafter(own, constraint, policy)
    return Lane(
        ActiveRequest(request, recorder or TotalsRecorder()),
        request,
        policy,
        forest.limits.context,
        LaneCache(forest.target.cache),
        draft,
        own,
    )


def answer_of(lane: Lane) -> tuple[list[int], str]:
    """Tokens and text so far. Raises the error that ended the lane."""
    chunks: list[Chunk] = []
    while not lane.chunks.empty():
        item = lane.chunks.get()
        if isinstance(item, BaseException):
            raise item
        if item is not None:
            chunks.append(item)
    return [token for chunk in chunks for token in chunk.tokens], "".join(chunk.text for chunk in chunks)


def run_all(forest: Forest, arrive: Callable[[], None] = lambda: None) -> None:
    """Run cycles until no lane is left. ``arrive`` is called before each and may admit lanes."""
    for _ in range(5000):
        arrive()
        if not (forest.lanes or forest.aside):
            return
        forest.cycle()
    raise AssertionError("requests do not end")


def alone(prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """The answer by plain decoding, without lanes or caches, and without the samplers."""
    limit = min(params.max_new_tokens or 10**9, LIMITS.context - len(prompt))
    return plain_answer(toy_logits, prompt, params, STOP, limit)
