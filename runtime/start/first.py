"""The first start on a machine that the tuning does not know: what a few passes take corrects the costs that policies decide by."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from statistics import median
from time import perf_counter
from typing import Protocol

from policy import Calibration, Costs, LatencyModel

from ..backends.cpu.processor import processor_name
from ..engine import LoadedEngine
from ..errors import RespsError
from ..lanes.forest import Forest
from ..manifest import kept_costs
from ..manifest.tuning import Tuning
from ..models import Models
from .benches import Bench, one_lane, several_lanes

SECONDS = 3.0  # for the measurement
TURNS = 9  # at most; the first one warms up
ROWS = (1, 4, 8, 2)  # of a lane; the first tell most, if the time is short
LENGTH = 32  # committed tokens of a lane

_log = logging.getLogger("resps")


class Opened(Protocol):
    """What is needed of a Decoder."""

    models: Models
    forest: Forest | None


Open = Callable[[LoadedEngine], AbstractContextManager[Opened]]


def at_home(loaded: LoadedEngine, lanes: int, open_decoder: Open | None) -> LoadedEngine:
    """``loaded`` with the costs of this machine, if its tuning was made on another one and it runs on a CPU. They are measured once, in a
    Decoder over the same weights that ``open_decoder`` makes, and kept; without ``open_decoder``, beside running requests, only kept ones
    are taken. What fails there only leaves the tuning as it was."""
    choice = loaded.choice
    tuning, here = choice.tuning, (processor_name(), choice.threads)
    if tuning is None or not tuning.portable or choice.device != "cpu" or (tuning.machine, tuning.threads) == here:
        return loaded
    place = kept_costs.Place(choice.manifest.engine_id, *here, lanes)
    latency = kept_costs.find(choice.directory, place)
    if latency is None:
        if open_decoder is None:
            return loaded
        started = perf_counter()
        try:
            with open_decoder(loaded.fork()) as decoder:
                latency = _measured(decoder, tuning, lanes)
        except RespsError as error:
            _log.warning("rounds could not be measured (%s) — their costs are those of %s", error, tuning.machine)
            return loaded
        except BaseException:
            loaded.backend.close()
            raise
        file = kept_costs.keep(choice.directory, place, latency)
        where = f"kept in {file}" if file else "not kept, as neither the engine directory nor the cache can be written"
        seconds = perf_counter() - started
        _log.info("the policy was tuned on %s, so rounds were measured here in %.1f s, %s", tuning.machine, seconds, where)
    return replace(loaded, choice=replace(choice, tuning=repriced(tuning, latency, *here)))


def _measured(decoder: Opened, tuning: Tuning, lanes: int) -> LatencyModel:
    tree = tuning.cost_model.tree if tuning.cost_model else tuning.static
    if decoder.forest is None:
        costs = measure(one_lane(decoder.models), (1,), tree[2], tree[1])
        return tuning.latency.alone().corrected(costs).of_one()
    bench = several_lanes(decoder.forest, lanes)
    try:
        return tuning.latency.for_lanes().corrected(measure(bench, (lanes, 1), tree[2], tree[1])).of_one()
    finally:
        bench.free()


def measure(bench: Bench, counts: tuple[int, ...], width: int, depth: int, clock: Callable[[], float] = perf_counter) -> Costs:
    """Medians of what ``bench`` takes with each of ``counts`` lanes, in about SECONDS, or what one pass takes if that is longer. ``width``,
    ``depth``: of the trees that are drafted; no drafts are timed if depth is 0."""
    passes: dict[tuple[int, int], list[float]] = {}
    drafts: dict[tuple[int, int], list[float]] = {}
    end = clock() + SECONDS
    bench.fill(LENGTH)
    for _, rows, lanes in product(range(TURNS), ROWS, counts):
        if passes and clock() > end:
            break
        if rows == 1 and passes:  # plain decoding, where a pass follows its like, which makes it faster
            bench.verify(lanes, lanes)
        started = clock()
        bench.verify(lanes, lanes * rows)
        passes.setdefault((lanes, rows), []).append(clock() - started)
        if rows == 1 and depth and clock() <= end:
            for levels, seconds in bench.drafts(lanes, width, depth).items():
                drafts.setdefault((lanes, levels), []).append(seconds)
    return Costs(_medians(passes), _medians(drafts), width, LENGTH)


def _medians(found: dict[tuple[int, int], list[float]]) -> dict[int, dict[int, float]]:
    """Milliseconds, by lanes. The first of several is left out."""
    table: dict[int, dict[int, float]] = {}
    for (lanes, at), seconds in found.items():
        table.setdefault(lanes, {})[at] = 1000 * median(seconds[1:] or seconds)
    return table


def repriced(tuning: Tuning, latency: LatencyModel, machine: str, threads: int) -> Tuning:
    """``tuning`` with the costs of this machine. What a millisecond is worth follows from what the best fixed tree costs now; it is worth
    no less than plain decoding makes of it."""
    before = tuning.latency

    def fitted(fit: Calibration, nodes: int, depth: int, width: int) -> Calibration:
        now, plain = (max(latency.round(*tree, 0), 1e-6) for tree in ((nodes, depth, width), (1, 0, 0)))
        return replace(fit, rate=max(fit.rate * before.round(nodes, depth, width, 0) / now, 1 / plain))

    sampled = tuning.sampled and replace(tuning.sampled, cost_model=fitted(tuning.sampled.cost_model, *tuning.sampled.static))
    cost_model = tuning.cost_model and fitted(tuning.cost_model, *tuning.static)
    return replace(tuning, machine=machine, threads=threads, latency=latency, cost_model=cost_model, sampled=sampled)
