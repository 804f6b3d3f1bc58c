"""The first start on another machine: what is measured, for how long, where it is kept; nothing is measured where costs are known."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import runtime.start.first
from export.tuning.install import install
from policy import CostModel, Costs, Guarded, LatencyModel, Watchdog
from runtime import Decoder, SamplingParams
from runtime.backends.cpu.processor import processor_name
from runtime.errors import EngineFailure
from runtime.manifest import kept_costs
from runtime.manifest.kept_costs import Place
from runtime.manifest.load import load_manifest
from runtime.start.first import SECONDS, TURNS, measure, repriced
from tests.support.eagle_engines import prompt_of
from tests.support.tunings import a_tuning

ROWS = (1, 2, 4, 8, 16, 32)
LATENCY = LatencyModel(ROWS, (100,), (tuple(9.0 + rows for rows in ROWS),), (1, 3), (1, 4), ((1.0, 4.0), (2.0, 8.0)), 0.5)
MEASURED = Costs({1: {1: 30.0, 4: 60.0}, 4: {1: 40.0, 4: 90.0}}, {1: {1: 3.0}, 4: {1: 5.0}}, 2, 32)


class Bench:
    """Passes and drafts that take ``seconds`` of a clock of its own."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.calls = 0.0, seconds, list[tuple[str, int, int]]()

    def clock(self) -> float:
        return self.now

    def fill(self, length: int) -> None:
        """Nothing to do."""

    def verify(self, lanes: int, rows: int) -> None:
        self.calls.append(("pass", lanes, rows))
        self.now += self.seconds * (1 + 0.1 * rows) * (5 if len(self.calls) == 1 else 1)  # the first one is cold

    def drafts(self, lanes: int, width: int, depth: int) -> dict[int, float]:
        self.calls.append(("draft", lanes, depth))
        self.now += self.seconds
        return {1: 0.5 * self.seconds, depth: self.seconds}


def test_measures_every_point_in_turns() -> None:
    bench = Bench(0.001)
    found = measure(bench, (8, 1), 3, 6, bench.clock)
    assert len(bench.calls) == TURNS * (2 * 5 + 2) - 1  # nothing ran before the first
    assert found.passes[1] == pytest.approx({1: 1.1, 2: 1.2, 4: 1.4, 8: 1.8})
    assert found.passes[8] == pytest.approx({1: 1.8, 2: 2.6, 4: 4.2, 8: 7.4})  # without the cold one
    assert found.drafts == {8: {1: 0.5, 6: 1.0}, 1: {1: 0.5, 6: 1.0}}


@pytest.mark.parametrize("seconds", [0.05, 0.5, 60.0])
def test_a_slow_machine_is_measured_no_longer(seconds: float) -> None:
    bench = Bench(seconds)
    found = measure(bench, (8, 1), 3, 6, bench.clock)
    longest = seconds * 5 * 1.8
    assert bench.now <= SECONDS + longest
    assert found.passes[8][1] > 0  # what tells most


def test_a_millisecond_is_worth_what_the_trees_make_of_it_here(echo_engine: Path) -> None:
    tuning = a_tuning(echo_engine, latency=LATENCY).tuning
    slower = LatencyModel(**{**vars(LATENCY), "verify_ms": tuple(tuple(4 * ms for ms in costs) for costs in LATENCY.verify_ms)})
    found = repriced(tuning, slower, "here", 3)
    assert (found.machine, found.threads, found.latency) == ("here", 3, slower)
    assert tuning.cost_model is not None
    assert found.cost_model is not None
    assert 1 / slower.round(1, 0, 0, 0) <= found.cost_model.rate < 0.5 * tuning.cost_model.rate


@pytest.fixture
def engine_dir(echo_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny engine with a portable tuning of another machine, and a cache of its own."""
    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    directory = Path(shutil.copytree(echo_engine, tmp_path / "engine"))
    install(directory, load_manifest(directory), a_tuning(directory, machine="another", portable=True, latency=LATENCY))
    return directory


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The numbers of lanes of every measurement, which finds MEASURED."""
    found: list[tuple[int, ...]] = []
    monkeypatch.setattr(runtime.start.first, "measure", lambda bench, counts, width, depth: found.append(counts) or MEASURED)
    return found


def latency_of(decoder: Decoder) -> LatencyModel:
    return decoder._engine.choice.latency


def test_a_strangers_costs_are_corrected_once_and_kept(
    engine_dir: Path, measured: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "resps"), Decoder(engine_dir, threads=1) as decoder:
        first = latency_of(decoder)
        policy = decoder._policy
        assert isinstance(policy, Watchdog)
        assert isinstance(policy.policy, CostModel)
        rounds = decoder._policies._context.costs
        assert rounds.model == first.alone()
        assert policy.latency.verify(4, 0) == policy.policy.latency.verify(4, 0) == pytest.approx(60)
        for reload in (False, True):
            with decoder.fork(reload_tuning=reload) as fork:
                assert latency_of(fork) == first
    assert first.verify(1, 0) == pytest.approx(30)
    assert first.verify(4, 0) == pytest.approx(60)
    assert [record.message for record in caplog.records] == [
        record.message for record in caplog.records if "another, so rounds were measured here" in record.message
    ]
    assert len(caplog.records) == 1
    with Decoder(engine_dir, threads=1) as decoder:
        assert latency_of(decoder) == first
        answer = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=20)).tokens
        assert answer == decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=20), policy="none").tokens
    assert measured == [(1,)]
    assert (engine_dir / kept_costs.FILE_NAME).is_file()


def test_several_lanes_have_costs_of_their_own(engine_dir: Path, measured: list[tuple[int, ...]]) -> None:
    for _ in range(2):
        with Decoder(engine_dir, threads=1, lanes=4) as decoder:
            assert decoder.forest is not None
            assert decoder.forest.budget.latency.model.verify(16, 4, 0) == pytest.approx(90)
            assert decoder.forest.budget.latency.model.verify(1, 1, 0) == pytest.approx(30)
    with Decoder(engine_dir, threads=1) as decoder:
        assert latency_of(decoder).verify(4, 0) == pytest.approx(60)
    assert measured == [(4, 1), (1,)]


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_fixed_tree_is_guarded_by_the_costs_of_its_number_of_lanes(engine_dir: Path, lanes: int) -> None:
    latency = replace(LATENCY, lanes=replace(LATENCY.for_lanes(), host_ms=(7.0,) * len(LATENCY.for_lanes().host_ms)))
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, threads=1, latency=latency))
    with Decoder(engine_dir, threads=1, lanes=lanes) as decoder:
        policy = decoder.policy("fixed")
    assert isinstance(policy, Guarded)
    assert policy.latency.model == (latency.alone() if lanes == 1 else latency.lanes)


def test_a_tuning_of_this_machine_is_believed(engine_dir: Path, measured: list[tuple[int, ...]]) -> None:
    install(
        engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, machine=processor_name(), threads=1, portable=True, latency=LATENCY)
    )
    with Decoder(engine_dir, threads=1) as decoder:
        assert latency_of(decoder) == LATENCY
    name = processor_name().partition(" (family")[0]  # as earlier versions wrote it
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, machine=name, threads=1, latency=LATENCY))
    with Decoder(engine_dir, threads=1) as decoder:
        assert latency_of(decoder) == LATENCY
    with Decoder(engine_dir, threads=1, draft="ngram"):  # has no use for a tuning
        assert not measured


@pytest.mark.parametrize("draft", [None, "eagle"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_real_passes_are_measured_and_leave_no_trace(engine_dir: Path, lanes: int, draft: str | None) -> None:
    with Decoder(engine_dir, threads=1, lanes=lanes, draft=draft) as decoder:
        found = latency_of(decoder)
        assert found != LATENCY
        assert min(found.verify(1, 0), found.draft(2, 3), found.for_lanes().verify(4 * lanes, lanes, 0)) > 0
        if decoder.forest is not None:
            assert decoder.forest.draft is not None
            assert all(pages.pool.free == pages.pool.count for pages in (decoder.forest.target.cache, decoder.forest.draft.cache))
        plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40), policy="none").tokens
        assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40)).tokens == plain


def test_a_directory_that_cannot_be_written_keeps_them_in_the_cache(
    engine_dir: Path, measured: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = os.replace

    def refused(source: str, target: Path) -> None:
        if target.parent == engine_dir:
            raise PermissionError
        written(source, target)

    monkeypatch.setattr(os, "replace", refused)
    for _ in range(2):
        with Decoder(engine_dir, threads=1) as decoder:
            assert latency_of(decoder) != LATENCY
    assert measured == [(1,)]
    assert not list(engine_dir.glob(f"{kept_costs.FILE_NAME}*"))
    assert len(list((tmp_path / "cache" / "costs").iterdir())) == 1
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError()))
    with Decoder(engine_dir, threads=1, lanes=2):  # nothing can be kept, so it is measured at every start
        assert len(measured) == 2


def test_a_measurement_that_fails_leaves_the_tuning_as_it_was(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Costs:
        raise EngineFailure("out of order")

    monkeypatch.setattr(runtime.start.first, "measure", fail)
    with Decoder(engine_dir, threads=1) as decoder:
        assert latency_of(decoder) == LATENCY
    assert "rounds could not be measured (out of order)" in caplog.text


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", '[{"place": {}}]'])
def test_a_damaged_file_is_measured_anew(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    (tmp_path / kept_costs.FILE_NAME).write_text(text)
    here, other = Place("engine", "here", 2, 1), Place("engine", "here", 2, 8)
    assert kept_costs.find(tmp_path, here) is None
    assert kept_costs.keep(tmp_path, here, LATENCY) == tmp_path / kept_costs.FILE_NAME
    kept_costs.keep(tmp_path, other, LATENCY)
    assert kept_costs.find(tmp_path, here) == kept_costs.find(tmp_path, other) == LATENCY
    bad = (tmp_path / kept_costs.FILE_NAME).read_text().replace("41.0", "NaN")
    (tmp_path / kept_costs.FILE_NAME).write_text(bad)
    assert kept_costs.find(tmp_path, here) is None
