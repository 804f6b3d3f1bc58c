"""Follows what rounds take in service: a machine that drifts, a noisy neighbour, costs that were measured on another machine.

Decisions depend on ratios only, so the model's own milliseconds stay the unit, and a machine that is slower throughout changes nothing.
Corrected are the price of a row beyond one a lane, and of drafting, both relative to a pass with one row a lane. Both are medians over the
last rounds: a single slow round moves them no more than any other round does. Only passes that are near each other in time are compared,
and drafting with the pass of its own round, so that a machine that changes its speed does not seem to change prices.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from math import nan

import numpy as np

from .base import Outcome
from .latency import LanesLatency, RoundCosts, interpolate, padding

WINDOW = 32  # passes, and rounds that drafted
_WINDOW_ALONE = 64  # of one request, whose passes have fewer rows and differ less
_LEAST_ROUNDS = 5  # for a correction
_CORRECTIONS = 8  # while a whole window passes
_LEAST_SPREAD, _LEAST_PAIRS = 0.1, 16  # of passes whose rows differ enough to tell a row's price
_LEAST_SIDE = 3  # passes with few rows, and with many: two slow ones must not say what rows cost
_NEAR = 4  # passes at most from one to another that it is compared with
_KEPT = 0.95  # share of what is known of a price, in logarithms, that is left after a correction without such passes
_KEPT_UNSEEN = 0.99  # the same of the price of drafting while hardly anybody drafts: to find out costs some rounds each time
_LOWEST, _HIGHEST = 0.1, 10.0  # bounds of the factors
_LENGTH_STEP = 64  # tokens


class CorrectedLatency:
    """``model`` with two factors. ``row_factor``: on what rows beyond one a lane cost. ``draft_factor``: on drafting. For one thread."""

    def __init__(self, model: LanesLatency) -> None:
        self.model, window = model, WINDOW if len(model.lanes) > 1 else _WINDOW_ALONE
        self.row_factor = self.draft_factor = 1.0
        # By round: extra rows and milliseconds, over a pass with one row a lane; not numbers if the pass tells nothing.
        self._passes: deque[tuple[float, float]] = deque(maxlen=window)
        # By round: milliseconds, the model's of the host in them, the model's of drafting; extra rows and milliseconds of its pass. None
        # for a round without drafting, so that what was seen long ago does not count while nobody drafts.
        self._drafts: deque[tuple[float, float, float, float, float] | None] = deque(maxlen=window)
        self._drafted: tuple[float, float, float] | None = None  # of this round, whose pass is to come
        self._since = 0
        self._levels: dict[tuple[int, int, int], float] = {}
        self._curves: dict[tuple[int, int], np.ndarray] = {}  # by lanes and length, for every number of rows in the model

    def passes(self, base: int, more: int, lanes: int, length: float) -> np.ndarray:
        """Milliseconds of passes with ``base`` to ``base`` + ``more`` rows of ``lanes`` lanes: [more + 1]. ``length``: mean committed
        tokens of a lane."""
        curve = self._curve(base + more, lanes, length)
        return np.asarray(curve[lanes] + self.row_factor * (curve[base : base + more + 1] - curve[lanes]))

    def _curve(self, rows: int, lanes: int, length: float) -> np.ndarray:
        """The model's milliseconds of passes with 0 to ``rows`` rows, or more of them. Kept, for lengths in steps."""
        key = lanes, round(length / _LENGTH_STEP)
        if key not in self._curves or len(self._curves[key]) <= rows:
            points, curve = self.model.rows, self.model.curve(lanes, key[1] * _LENGTH_STEP)
            count = max(2 * rows, points[-1])
            costs = np.array([interpolate(points, curve, each) for each in range(count + 1)])
            self._curves[key] = np.maximum.accumulate(costs)  # more rows never cost less, whatever factor they get
        return self._curves[key]

    def place(self, length: float) -> float:
        """Milliseconds of a place in attention that no row fills (`policy.latency.padding`)."""
        return self.row_factor * self.model.place(length)

    def verify(self, rows: int, lanes: int, length: float, widest: int = 0) -> float:
        """Milliseconds of one such pass. ``widest``: rows of its largest tree [default: as if all were alike]."""
        curve = self._curve(rows, lanes, length)
        return float(curve[lanes] + self.row_factor * (curve[rows] - curve[lanes])) + self.place(length) * padding(rows, lanes, widest)

    def draft(self, lanes: int, width: int, depth: int) -> float:
        """Milliseconds to draft trees of ``depth`` levels in ``lanes`` lanes at once."""
        key = lanes, width, depth
        if key not in self._levels:
            self._levels[key] = self.model.draft(*key)
        return self.draft_factor * self._levels[key]

    def drafting(self, growing: list[int], width: int) -> float:
        """Milliseconds of drafting when ``growing[l]`` lanes have level l + 1."""
        return sum(self.draft(lanes, width, at + 1) - self.draft(lanes, width, at) for at, lanes in enumerate(growing))

    def host(self, lanes: int) -> float:
        """Milliseconds of a round outside drafting and verifying."""
        return self.model.host(lanes)

    def observe_pass(self, rows: int, lanes: int, length: float, milliseconds: float, widest: int = 0) -> None:
        """Learn from a pass. ``widest``: as in ``verify``."""
        curve = self._curve(rows, lanes, length)
        if (plain := float(curve[lanes])) > 0:
            modelled = float(curve[rows]) + self.model.place(length) * padding(rows, lanes, widest)
            self._add(modelled / plain - 1, milliseconds / plain)

    def _add(self, extra: float, whole: float) -> None:
        self._passes.append((extra, whole))
        self._drafts.append(None if self._drafted is None else (*self._drafted, extra, whole))
        self._drafted = None
        self._since += 1
        if len(self._passes) >= _LEAST_ROUNDS and self._since * _CORRECTIONS >= (self._passes.maxlen or 0):
            self._since = 0
            self._correct()

    def observe_draft(self, growing: list[int], width: int, milliseconds: float, host: float = 0.0) -> None:
        """Learn from a round's drafting, before its pass; arguments as in ``drafting``. ``host``: what ``milliseconds`` hold besides, by
        the model."""
        expected = self.drafting(growing, width) / self.draft_factor
        self._drafted = (milliseconds, host, expected) if expected > 0 else None

    def observe(self, outcome: Outcome, depth: int, length: int) -> None:
        """Learn from a round of one request, if its passes were its own. ``depth``: levels that were drafted; ``length``: committed tokens
        before it."""
        if outcome.pass_seconds is None:
            return
        if depth and outcome.nodes == 1:  # behind a draft such a pass is slower than in plain decoding
            self._add(nan, nan)
            return
        if depth and outcome.unread <= depth + 1:  # else the draft reads what it missed, which takes longer than drafting does
            self.observe_draft([1] * depth, outcome.spec.width, 1000 * outcome.rest_seconds, self.host(1))
        self.observe_pass(outcome.nodes, 1, length, 1000 * outcome.pass_seconds)

    def _correct(self) -> None:
        """While passes are alike, they do not divide a round into its parts, and both prices return to the model's: otherwise whoever found
        rows too dear to use them would never find out that they are cheap again."""
        extra, whole = np.array(self._passes).T
        at = np.flatnonzero(np.isfinite(extra))
        price = _price(at, extra[at], whole[at])
        self.row_factor = self.row_factor**_KEPT if price is None else min(_HIGHEST, max(_LOWEST, price))
        plain = len(at) >= _LEAST_ROUNDS and bool(extra[at].max() <= _LEAST_SPREAD)
        drafts = [each for each in self._drafts if each is not None]
        if len(drafts) < _LEAST_ROUNDS:
            self.draft_factor **= _KEPT_UNSEEN
        elif price is None and not plain:
            self.draft_factor **= _KEPT
        else:
            measured, besides, modelled, rows, passes = np.array(drafts).T
            found = float(np.median((measured * (1 + self.row_factor * rows) / passes - besides) / modelled))
            self.draft_factor = min(_HIGHEST, max(_LOWEST, found))


def _price(at: np.ndarray, extra: np.ndarray, whole: np.ndarray) -> float | None:
    """What rows cost, over the model: the median over pairs of near passes whose rows differ, as Theil and Sen's slope is. None if too few
    passes differ. ``at``: when the passes were; ``extra``, ``whole``: as in ``_passes``; each [m]."""
    if len(at) < _LEAST_ROUNDS:
        return None
    few, many = (extra < extra.max() - _LEAST_SPREAD).sum(), (extra > extra.min() + _LEAST_SPREAD).sum()
    first, second = _pairs(len(at))
    slope, height = whole[second] - whole[first], whole[first] * extra[second] - whole[second] * extra[first]
    telling = (np.abs(extra[second] - extra[first]) > _LEAST_SPREAD) & (at[second] - at[first] <= _NEAR) & (height != 0)
    if min(few, many) < _LEAST_SIDE or telling.sum() < _LEAST_PAIRS:
        return None
    return float(np.median(slope[telling] / height[telling]))


class CorrectedRounds(RoundCosts):
    """``costs`` for the rounds of one request, which has its passes for itself."""

    def __init__(self, costs: CorrectedLatency) -> None:
        self._costs, self.host_ms = costs, costs.host(1)

    def verify(self, nodes: int, length: int) -> float:
        return self._costs.verify(nodes, 1, length)

    def draft(self, width: int, depth: int) -> float:
        return self._costs.draft(1, width, depth)

    def observe(self, outcome: Outcome, depth: int, length: int) -> None:
        self._costs.observe(outcome, depth, length)


@cache
def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.triu_indices(count, 1)
    return first, second
