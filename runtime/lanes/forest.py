"""The forest: the trees of all lanes. One cycle reads a chunk of one prompt and runs a round of every other lane: draft, verify, commit;
on a CPU in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from time import perf_counter

from policy import Outcome, RowBudget

from ..backends.lane_cache import close_gap
from ..backends.page_pool import OutOfPages
from ..decoding.cycle import CycleEvent
from ..decoding.loop import Round
from ..errors import COMMIT, PREFILL, VERIFY, EngineFailure
from ..manifest.schema import Limits
from ..text.tokenizer import Tokenizer
from .chunks import ChunkSeconds
from .draft import LanesDraft
from .lane import Lane
from .pace import Pace
from .plan import Planned, Planner
from .prefix import PrefixCache, begin
from .target import LanePass, LanesTarget

_AHEAD = 16  # slots that a lane has at least behind its committed ones; a pass reads whole pages, so more of them would slow all lanes


@dataclass(frozen=True)
class Reading:
    """The next ``tokens`` of a prompt, which one pass reads."""

    lane: Lane
    tokens: list[int]


def _copied(error: BaseException | None) -> BaseException | None:
    """An error for one of several readers: raising it changes its traceback."""
    try:
        copied = copy(error)
    except Exception:  # its class takes other arguments
        return error
    if copied is not None:
        copied.__cause__ = error
    return copied


@dataclass
class Forest:
    """The running lanes and what they share. Only the driver's thread uses it, once it runs; ``pace`` may be read from any thread."""

    planner: Planner
    tokenizer: Tokenizer
    lanes: list[Lane] = field(default_factory=list)
    aside: list[Lane] = field(default_factory=list)  # put aside when the cache was full, to be resumed
    pace: Pace = field(default_factory=Pace)
    target: LanesTarget = field(init=False)
    draft: LanesDraft | None = field(init=False)
    limits: Limits = field(init=False)
    budget: RowBudget = field(init=False)
    chunks: ChunkSeconds = field(init=False)
    prefixes: PrefixCache = field(init=False)

    def __post_init__(self) -> None:
        planner = self.planner
        self.target, self.draft, self.limits, self.budget = planner.target, planner.draft, planner.limits, planner.budget
        self.chunks = ChunkSeconds(self.budget.latency.model)
        self.prefixes = PrefixCache(self.target.cache, self.draft.cache if self.draft else None)

    def admit(self, lane: Lane) -> None:
        """Begin a request, or resume one that was put aside. It gets its pages when its turn to read comes."""
        lane.unread, lane.tokens = lane.tokens or list(lane.request.prompt), []
        self.lanes.append(lane)

    def _begin(self, lane: Lane) -> bool:
        """Give a lane its pages, with what they can have from other lanes. Returns False if it was put aside, as there are no pages."""
        known, fresh, scattered = lane.unread, lane.root is None, False
        while True:
            prefix = self.prefixes.find(known, self.lanes, lane.request.tenant)
            try:
                begin(lane.cache, lane.draft, prefix, len(known) + _AHEAD, scattered)
                break
            except OutOfPages:
                if self.prefixes.evict():
                    continue
                if scattered:
                    self._put_aside(lane)
                    return False
                scattered = True  # a pass over pages that are far apart is slower, waiting is slower still
        kept = lane.cache.length
        if fresh:
            lane.request.counters.cached_prompt_tokens = kept
        lane.tokens, lane.unread = known[:kept], known[kept:]
        lane.own.begin(lane.tokens)
        return True

    def cycle(self) -> None:
        """Read a chunk of the first prompt that waits for it, and run a round of the lanes that decode."""
        self._end_finished()
        if self.aside and (not self.lanes or self.target.cache.pool.free > self.target.cache.pool.count // 4):
            self.admit(self.aside.pop(0))
        decoding = [lane for lane in self.lanes if not lane.reading]
        waiting = [lane for lane in self.lanes if lane.reading]
        reading = self._next_chunk(waiting[0], bool(decoding) and len(waiting) == 1) if waiting else None
        for lane in decoding:
            self._reserve(lane, _AHEAD)
        self._close_gaps()
        if reading and reading.lane not in self.lanes:
            reading = None
        if reading and not (decoding and self.target.takes_chunks):
            self._read(reading)
            reading = None
        if decoding := [lane for lane in decoding if lane in self.lanes]:
            self._round(decoding, reading)
        elif reading:
            self._read(reading)
        self._end_finished()

    def _end_finished(self) -> None:
        for lane in [*self.lanes, *self.aside]:
            if lane.fault is not None or lane.over:
                self._end(lane, lane.fault)

    @property
    def idle(self) -> bool:
        """Whether no request runs."""
        return not (self.lanes or self.aside)

    def forget(self) -> None:
        """Drop the prefix cache, and what requests would leave there whose readers are gone."""
        self._end_finished()
        self.prefixes.clear()

    def _reserve(self, lane: Lane, rows: int) -> None:
        """Take pages for ``rows`` more rows of a lane. If there are none, drop what finished lanes left, then put aside the lane that began
        last; it reads its tokens again when there is room."""
        while lane in self.lanes:
            try:
                lane.cache.reserve(lane.cache.length + rows)
                if lane.draft is not None:
                    lane.draft.cache.reserve(lane.draft.cache.length + len(lane.draft.waiting_tokens) + self._draft_rows(rows))
                return
            except OutOfPages:
                if not self.prefixes.evict():
                    self._put_aside(self.lanes[-1])

    def _close_gaps(self) -> None:
        if self.target.cache.moves:
            close_gap([lane.cache for lane in self.lanes])
            close_gap([lane.draft.cache for lane in self.lanes if lane.draft])

    def _put_aside(self, lane: Lane) -> None:
        lane.tokens = [*lane.tokens, *lane.unread]  # all of them are read again
        self._free(lane)
        self.aside.append(lane)

    def _draft_rows(self, rows: int) -> int:
        assert self.draft is not None
        return max(rows, 1 + self.draft.max_width * self.draft.max_depth)

    def _free(self, lane: Lane, clear: bool = False) -> None:
        self.lanes.remove(lane)
        lane.cache.free(clear)
        if lane.draft is not None:
            lane.draft.cache.free(clear)
            lane.draft.forget()

    def _end(self, lane: Lane, error: BaseException | None = None) -> None:
        """End a request: give its place free, keep its caches for later ones, and tell its reader."""
        if lane in self.lanes:
            try:
                if error is None and not lane.reading:
                    self.prefixes.keep(lane)
                self._free(lane, clear=error is not None)
            except EngineFailure as failure:  # a device that is lost; the reader must not wait for ever
                error = error or failure
        elif lane in self.aside:
            self.aside.remove(lane)
        tail = lane.request.end() if error is None and not lane.active.ended else None
        lane.active.end("cancelled" if error is None else "error")
        if tail:
            lane.chunks.put(tail)
        lane.chunks.put(error)

    def close(self, arrived: Sequence[Lane], error: BaseException | None = None) -> None:
        """End all requests, those that have just arrived included."""
        for lane in {*self.lanes, *self.aside, *arrived}:
            lane.request.cancelled = True
            if error is None:
                lane.request.is_over()
            self._end(lane, _copied(error))
        self.prefixes.clear()

    def _next_chunk(self, lane: Lane, alone: bool) -> Reading | None:
        """What to read of a prompt now, with pages for it; None if there are none. ``alone``: as in ChunkSeconds."""
        if not lane.cache.pages and not self._begin(lane):
            return None
        chunk = lane.unread[: self.chunks.next_rows(self.limits.prefill_rows, self.pace, alone, self.target.takes_chunks)]
        self._reserve(lane, len(chunk))
        return Reading(lane, chunk) if lane in self.lanes else None

    def _read(self, reading: Reading) -> None:
        """Read a chunk in a pass of its own."""
        started = perf_counter()
        try:
            with PREFILL:
                found = self.target.read_chunk(reading.lane.cache, reading.tokens)
        except EngineFailure as error:
            self._end(reading.lane, error)
            return
        self._commit_chunk(reading, found)
        seconds = perf_counter() - started
        self.chunks.observe(len(reading.tokens), seconds)
        reading.lane.active.report(CycleEvent(read_rows=len(reading.tokens), read_seconds=seconds))

    def _commit_chunk(self, reading: Reading, found: LanePass) -> None:
        lane, rows = reading.lane, range(len(reading.tokens))
        try:
            with PREFILL:
                self.target.commit([(lane.cache, rows)])
                del lane.unread[: len(rows)]
                self._committed(lane, reading.tokens, found, rows)
                if not lane.unread and lane.root is None:
                    lane.chunks.put(lane.first_token(found.output))
        except Exception as error:
            self._end(lane, error)

    def _committed(self, lane: Lane, tokens: Sequence[int], found: LanePass, rows: Sequence[int]) -> None:
        """``tokens`` were committed; they are ``rows`` of a pass."""
        lane.tokens.extend(tokens)
        lane.own.extend(tokens, found.output, rows)
        features = found.output.features[list(rows)]
        lane.features = features[-1].copy()
        if lane.draft is not None and self.draft is not None:
            self.draft.extend(lane.draft, tokens, features, read=lane.drafts)

    def _round(self, lanes: Sequence[Lane], reading: Reading | None) -> None:
        """Run a round of ``lanes``; its pass reads a chunk of a prompt as well."""
        started = perf_counter()
        waiting = len(self.lanes) + len(self.aside) - len(lanes)
        planned = self.planner.plan(lanes, waiting, len(reading.tokens) if reading else 0)
        drafted = perf_counter()
        passes = self._verify(planned, reading)
        verified = perf_counter()
        rows = sum(len(each.tree) for each in planned)
        accepted = []
        for plan in planned:
            if plan.lane not in passes:
                continue
            try:
                accepted.append((plan, passes[plan.lane], plan.lane.accepted(plan.tree, passes[plan.lane].output)))
            except Exception as error:
                self._end(plan.lane, error)
        with COMMIT:
            self.target.commit([(plan.lane.cache, found.path) for plan, _, found in accepted])
        for plan, scored, found in accepted:
            root = plan.lane.root
            assert root is not None
            self._committed(plan.lane, (root, *found.tokens[:-1]), scored, found.path)
            plan.lane.root = found.tokens[-1]
            if plan.promised is not None:
                self.budget.observe_tree(plan.lane.history, plan.promised, len(found.path) - 1, len(plan.tree) - 1)
        tokens = sum(len(found.tokens) for _, _, found in accepted)
        read_rows = len(reading.tokens) if reading and reading.lane in passes else 0
        if reading and read_rows:
            self._commit_chunk(reading, passes[reading.lane])
            self.chunks.observe(rows + read_rows, verified - drafted)
        else:
            self.budget.observe_round(tokens, rows, 1000 * (verified - drafted), max(len(each.tree) for each in planned))
        seconds = perf_counter() - started
        if accepted:
            self.pace.add_round(started, tokens / len(accepted), None if reading else rows)
        rounds = []
        for plan, _, found in accepted:
            if plan.lane.policy is not None and plan.chosen:
                plan.lane.policy.observe(Outcome(plan.spec, len(plan.tree), len(found.tokens), seconds))
            round_ = Round(found.tokens, plan.spec, plan.tree, found.path, started, drafted - started, verified - drafted, seconds)
            rounds.append((plan.lane.active.number, round_))
            plan.lane.chunks.put(plan.lane.request.chunk(found.tokens, round_))
        planned[0].lane.active.report(CycleEvent(tuple(rounds), rows, read_rows))

    def _verify(self, planned: Sequence[Planned], reading: Reading | None) -> dict[Lane, LanePass]:
        """Score all trees and read a chunk in one pass. If it fails, each has a pass of its own, and only the lanes that fail alone end."""
        try:
            with VERIFY:
                trees = [(plan.lane.cache, plan.tree) for plan in planned]
                found = self.target.verify(trees, (reading.lane.cache, reading.tokens) if reading else None)
        except EngineFailure as error:
            if reading:
                passes = {lane: scored.copied() for lane, scored in self._verify(planned, None).items()}
                self._read(reading)
                return passes
            if len(planned) > 1:
                return {lane: scored.copied() for plan in planned for lane, scored in self._verify([plan], None).items()}
            self._end(planned[0].lane, error)
            return {}
        return dict(zip([*(plan.lane for plan in planned), *([reading.lane] if reading else [])], found, strict=True))
