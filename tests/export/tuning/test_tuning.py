"""Tuning: what is recorded is what really happens, what is fitted is used, and nothing is installed by halves."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.tuning.cli
import export.tuning.install
import export.tuning.replay.grid
import export.tuning.replay.record
import export.tuning.tune
from export.tuning.cli import command
from export.tuning.errors import TuningError
from export.tuning.install import install
from export.tuning.learning.curriculum import LESSONS
from export.tuning.learning.nets import Mlp, graph
from export.tuning.prompts import read_prompts
from export.tuning.replay.calibrate import fit_chances
from export.tuning.replay.grid import TreeGrid
from export.tuning.replay.simulation import best_static, candidates, oracle, reached, replay, static_trees
from export.tuning.replay.traces import Trace, trace
from policy import PLAIN, Calibration, CostModel, FixedPolicy, Ltd, Observation, Outcome, PartialTree, TreeSpec, Watchdog
from runtime import Decoder, EngineDirError, SamplingParams
from runtime.backends.cpu.processor import processor_name
from runtime.console import run_command
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.policies.registry import main_policies
from tests.support.eagle_engines import prompt_of
from tests.support.tunings import FAST, SLOW, SURFACE, a_tuning, net

TREES = [PLAIN, TreeSpec(2, 1, 1), TreeSpec(5, 3, 2), TreeSpec(7, 4, 2), TreeSpec(9, 2, 3), TreeSpec(5, 4, 1)]


def traced(decoder: Decoder, sampling: SamplingParams, length: int = 20, count: int = 90) -> dict[int, Trace]:
    prompt = prompt_of(length)
    answer = decoder.generate(prompt, replace(sampling, max_new_tokens=count)).tokens
    return {width: trace(decoder, prompt, answer, 4, width) for width in (1, 2, 3)}


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.7, seed=3)], ids=["greedy", "sampled"])
def test_replayed_rounds_are_those_that_really_happen(eagle_decoder: Decoder, sampling: SamplingParams) -> None:
    """The law that everything else stands on: a tree's rounds follow from the record, exactly."""
    answer = [traced(eagle_decoder, sampling)]
    for tree in TREES:
        really = eagle_decoder.generate(prompt_of(20), replace(sampling, max_new_tokens=90), policy=FixedPolicy(tree)).stats
        found = replay(FixedPolicy(tree), answer, SURFACE)
        assert (found.cycles, found.tokens) == (really.cycles, really.new_tokens - 1), tree


def test_replayed_closed_form_decides_as_in_service(eagle_decoder: Decoder) -> None:
    answer = [traced(eagle_decoder, SamplingParams())]
    model = CostModel(Calibration(1.0, 0.0, 0.5, 0.5, 0.08, (9, 4, 2)), SURFACE)
    found = replay(model, answer, SURFACE)
    seen: list[tuple[int, int]] = []

    class Witness(CostModel):
        def observe(self, outcome: Outcome) -> None:
            seen.append((outcome.nodes, outcome.tokens))
            super().observe(dataclasses.replace(outcome, seconds=0.0))  # the replay's milliseconds are not this machine's

    patient = Witness(model.calibration, SURFACE)
    stats = eagle_decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy=patient).stats
    again = replay(Witness(model.calibration, SURFACE), answer, SURFACE)
    assert (again.cycles, again.tokens) == (stats.cycles, stats.new_tokens - 1)
    # The last tree is cut to what the answer has room for, which a record does not know.
    assert seen[: stats.cycles - 1] == seen[stats.cycles : -1]
    assert len({nodes for nodes, _ in seen}) > 2
    assert found.tokens == again.tokens


def test_trees_that_are_cut_while_they_grow_change_no_token(eagle_decoder: Decoder) -> None:
    """Any decision at any level, at random, also every round another."""
    expected = eagle_decoder.generate(prompt_of(33), SamplingParams(max_new_tokens=120), policy=FixedPolicy(PLAIN)).tokens

    class Whims:
        def __init__(self, seed: int) -> None:
            self.random = np.random.default_rng(seed)
            self.asked: list[int] = []

        def begin(self) -> None:
            """Goes on."""

        def choose(self, observation: Observation) -> TreeSpec:
            return TREES[int(self.random.integers(len(TREES)))]

        def should_expand(self, partial_tree: PartialTree) -> bool:
            assert len(partial_tree.scores) == candidates(partial_tree.spec.width, partial_tree.level)
            assert len(partial_tree.last) == partial_tree.spec.width ** min(partial_tree.level, 2)
            self.asked.append(partial_tree.level)
            return bool(self.random.random() < 0.6)

        def num_nodes(self, partial_tree: PartialTree) -> int:
            return int(self.random.integers(1, partial_tree.spec.nodes + 1))

        def observe(self, outcome: Outcome) -> None:
            """Learns nothing."""

    for seed in range(6):
        whims = Whims(seed)
        assert eagle_decoder.generate(prompt_of(33), SamplingParams(max_new_tokens=120), policy=whims).tokens == expected
        assert {1, 2} <= set(whims.asked)
        sampling = SamplingParams(temperature=0.8, seed=seed)
        sampled = eagle_decoder.generate(prompt_of(33), replace(sampling, max_new_tokens=60), policy=FixedPolicy(PLAIN)).tokens
        assert eagle_decoder.generate(prompt_of(33), replace(sampling, max_new_tokens=60), policy=Whims(seed)).tokens == sampled


def test_reached_counts_as_the_rerank_does(eagle_decoder: Decoder) -> None:
    each = traced(eagle_decoder, SamplingParams())[2]
    for place in range(len(each)):
        counts = [reached(each, place, 4, nodes) for nodes in range(1, 20)]
        assert counts == sorted(counts)  # the best n are among the best n + 1
        assert counts[0] == 0
        deepest = int((each.right[place] >= 0).sum())
        assert counts[-1] <= deepest
        assert reached(each, place, 4, 100) == deepest
    assert each.on_path().sum() == (each.right >= 0).sum()


def test_nothing_beats_the_oracle_and_the_best_tree_beats_the_others(eagle_decoder: Decoder) -> None:
    answers = [traced(eagle_decoder, SamplingParams(), length) for length in (5, 20)]
    trees = static_trees((1, 2, 3), (1, 2, 3), 8)
    best, done = best_static(answers, SURFACE, trees)
    assert best in trees
    assert all(replay(FixedPolicy(tree), answers, SURFACE).rate <= done.rate for tree in trees)
    assert oracle(answers, SURFACE, trees, done.rate).rate >= done.rate
    assert {tree.nodes for tree in static_trees((2,), (3,), 64, sizes=(1, 4, 8, 64))} == {1, 4, 8}


def test_fitted_chances_are_those_that_made_the_record() -> None:
    random, count = np.random.default_rng(0), 6000
    scores = -random.exponential(2, (count, 1)).astype(np.float32)
    right = random.random((count, 1)) < 1 / (1 + np.exp(-(1.3 * scores + 0.4)))
    record = Trace(1, 1, scores, np.ones(1, np.int8), np.where(right, 0, -1).astype(np.int16), np.zeros((count, 1), np.float16))
    slope, level, bias = fit_chances([{1: record}], 1)
    assert abs(slope - 1.3) < 0.12
    assert abs(level + bias - 0.4) < 0.12  # one level only: both shift alike


def test_surface_interpolates_and_goes_on() -> None:
    assert SURFACE.verify(1, 50) == 10
    assert SURFACE.verify(8, 100) == 17
    assert SURFACE.verify(2, 100) == 11
    assert SURFACE.verify(15, 100) == 24
    assert SURFACE.verify(1, 550) == 15
    assert SURFACE.draft(0, 0) == 0
    assert SURFACE.draft(2, 1) == 1.5
    assert SURFACE.draft(3, 6) == 12
    assert SURFACE.round(1, 0, 0, 100) == 10.5


@pytest.fixture
def tiny(echo_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to tune, few prompts, short answers, a cache of its own."""
    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(export.tuning.replay.record, "LEAST_PROMPTS", 3)
    monkeypatch.setattr(export.tuning.tune, "LEAST_PROMPTS", 3)
    monkeypatch.setattr(export.tuning.tune, "LEAST_TURN", 0.1)
    grid = TreeGrid(widths=(1, 2), depths=(1, 2, 3), nodes=6, new_tokens=20)
    monkeypatch.setattr(export.tuning.replay.grid, "grid_for", lambda _: grid)
    (tmp_path / "prompts.txt").write_text("".join(f"the quick brown fox {number}\n" for number in range(9)))
    return Path(shutil.copytree(echo_engine, tmp_path / "engine"))


def tune(directory: Path, *more: str) -> int:
    return run_command(
        command,
        "resps-tune",
        ["--engine-dir", str(directory), "--prompts", str(directory.parent / "prompts.txt"), "--minutes", "0.1", *more],
    )


def test_tuned_policy_is_installed_and_used(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = load_manifest(tiny)
    assert before.tuning is None
    assert tune(tiny, "--threads", "2", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    after = load_manifest(tiny)
    assert after.tuning is not None
    assert json.loads(json.dumps(dataclasses.asdict(after.tuning))) == shown
    assert dataclasses.replace(after, tuning=None) == before
    assert (after.tuning.machine, after.tuning.threads) == (processor_name(), 2)
    assert after.tuning.policy in main_policies()
    assert set(after.tuning.ratios) == set(main_policies())
    assert set(after.tuning.learned) == {"resps", "ltd", "resps+ltd"}
    with Decoder(tiny, threads=2) as decoder:
        plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60), policy=FixedPolicy(PLAIN)).tokens
        assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60)).tokens == plain
        for name in main_policies():
            assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60), policy=name).tokens == plain, name
    assert {path.name for path in tiny.glob("tuned-*")} == set(after.tuning.files)
    edited(tiny, lambda t: t["learned"]["resps"]["slow"]["net"].update(inputs_version=2))  # it is refused now, and replaced all the same
    assert tune(tiny, "--threads", "2", "--policy", "ltd") == 0  # what it replaces is swept away
    again = load_manifest(tiny)
    assert again.tuning is not None
    assert set(again.tuning.learned) == {"ltd"}
    assert {path.name for path in tiny.glob("tuned-*")} == set(again.tuning.files)


def test_what_was_recorded_is_not_recorded_again(tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune(tiny, "--dry-run", "--policy", "cost-model") == 0
    assert load_manifest(tiny).tuning is None

    def never(*_: Any) -> None:
        raise AssertionError("recorded again")

    monkeypatch.setattr(export.tuning.replay.record, "_recorded", never)
    assert tune(tiny, "--dry-run", "--policy", "cost-model") == 0
    assert "by the clock" in capfd.readouterr().out


def test_interruption_changes_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = (tiny / FILE_NAME).read_bytes()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export.tuning.tune, "confirm", interrupted)
    assert tune(tiny, "--policy", "cost-model") == 130
    assert (tiny / FILE_NAME).read_bytes() == manifest
    assert not list(tiny.glob(".*"))
    assert capfd.readouterr().err.splitlines()[-1] == "resps-tune: interrupted"


def test_all_trains_every_lesson(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def interrupted(decoder: Any, asked: Any, minutes: Any, learned: tuple[str, ...], *_: Any) -> None:
        names.extend(learned)
        raise KeyboardInterrupt

    monkeypatch.setattr(export.tuning.cli, "_tuned", interrupted)
    assert tune(tiny, "--policy", "all") == 130
    assert sorted(names) == sorted(LESSONS)


@pytest.mark.parametrize("changes", [{"machine": "another"}, {"threads": 7}], ids=str)
def test_tuning_of_another_machine_is_not_used_and_says_so(tiny: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, **changes))
    with caplog.at_level(logging.WARNING), Decoder(tiny, threads=2) as decoder:
        assert isinstance(decoder._policy, FixedPolicy)
    assert "a fixed tree is used — resps-tune tunes it for here" in caplog.text
    with pytest.raises(EngineDirError, match="cost-model has not been tuned for this engine on this machine — resps-tune"):
        Decoder(tiny, threads=2, policy="cost-model")


def test_engine_that_changed_meanwhile_is_left_alone(tiny: Path) -> None:
    manifest = load_manifest(tiny)
    other = dataclasses.replace(manifest, model="other")
    with pytest.raises(TuningError, match="was exported anew while it was tuned — tune again"):
        install(tiny, other, a_tuning(tiny))
    assert load_manifest(tiny) == manifest


def test_what_a_killed_tuning_left_is_swept_away(tiny: Path) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    (tiny / f".tuning.partial-{finished.pid}-abc").mkdir()
    install(tiny, load_manifest(tiny), a_tuning(tiny))
    assert not list(tiny.glob(".*"))


def test_untuned_policy_and_unknown_name(echo_engine: Path) -> None:
    with pytest.raises(EngineDirError, match="cost-model has not been tuned"):
        Decoder(echo_engine, policy="cost-model")
    with pytest.raises(ValueError, match="unknown policy 'best' — choose from none, fixed, cost-model"):
        Decoder(echo_engine, policy="best")


def test_too_few_prompts_and_no_draft(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tiny.parent / "prompts.txt").write_text("one\ntwo\n")
    assert tune(tiny) == 1
    assert capfd.readouterr().err == "resps-tune: 2 prompts are too few, tuning needs 3 — give more with --prompts\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [("{broken\n", "line 1: no prompt and no turns"), ('plain\n{"turns": []}\n', "line 2"), ('{"prompt": 3}\n', "line 1")],
)
def test_prompts_that_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p").write_text(text)
    with pytest.raises(TuningError, match=says):
        read_prompts(tmp_path / "p")


def test_prompts_of_every_form(tmp_path: Path) -> None:
    (tmp_path / "p").write_text('{"prompt": "a"}\n\n{"turns": ["b", "c"]}\nd e\n')
    assert read_prompts(tmp_path / "p") == ["a", "b", "d e"]
    assert len(read_prompts(None)) > 40


def edited(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = directory / FILE_NAME
    manifest = json.loads(file.read_text())
    change(manifest["tuning"])
    file.write_text(json.dumps(manifest))


def test_learned_policies_decode_as_they_replayed_and_change_no_token(tiny: Path, eagle_decoder: Decoder) -> None:
    """What was trained in simulated time and what runs from the installed graphs take the same decisions."""
    both = dataclasses.replace(FAST, slow=SLOW.slow, actions=SLOW.actions)
    average = dataclasses.replace(SLOW, slow=net(64, 3), state="average")
    trained = {"resps": SLOW, "ltd": FAST, "resps+ltd": both, "resps-average": average}
    install(tiny, load_manifest(tiny), a_tuning(tiny, trained, policy="ltd"))
    answer = [traced(eagle_decoder, SamplingParams())]
    with Decoder(tiny, draft="eagle", threads=2) as tuned:
        plain = tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy="none").tokens
        for name, each in trained.items():
            policy = tuned.policy(name)
            assert isinstance(policy, Watchdog)
            stats = tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy=policy.policy).stats
            found = replay(each.policy(), answer, SURFACE)
            assert (found.cycles, found.tokens) == (stats.cycles, stats.new_tokens - 1), name
            assert tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy=name).tokens == plain
            sampling = SamplingParams(temperature=0.9, seed=5)
            sampled = [tuned.generate(prompt_of(20), replace(sampling, max_new_tokens=50), policy=each).tokens for each in ("none", name)]
            assert sampled[0] == sampled[1]
        assert isinstance(tuned._policy, Watchdog)
        assert isinstance(tuned._policy.policy, Ltd)  # the one that the tuning chose


def test_network_that_gives_no_numbers_is_pinned_to_the_fixed_tree(tiny: Path) -> None:
    broken = Mlp(tuple((weight * np.float32("nan"), bias) for weight, bias in net(192, 3).layers), "relu")
    monkeyed = a_tuning(tiny, {"resps": dataclasses.replace(SLOW, slow=broken)}, policy="resps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.tuning.install, "_check", lambda *_: None)
        install(tiny, load_manifest(tiny), monkeyed)
    with Decoder(tiny, threads=2) as decoder:
        plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40), policy="none").tokens
        assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40)).tokens == plain
        assert isinstance(decoder._policy, Watchdog)
        assert "logits are not finite" in str(decoder._policy.pinned)


def test_graph_that_differs_from_the_network_is_not_installed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_manifest(tiny)
    other = graph(net(192, 3, seed=8))
    monkeypatch.setattr(export.tuning.install, "graph", lambda _: other)
    with pytest.raises(TuningError, match=r"the graph of resps\.slow differs from the trained network"):
        install(tiny, before, a_tuning(tiny, {"resps": SLOW}))
    assert load_manifest(tiny) == before
    assert not [*tiny.glob(".tuning*"), *tiny.glob("tuned-*")]


def test_policies_share_the_networks_they_have_in_common(tiny: Path) -> None:
    """One file each, which stays for as long as some policy names it."""
    both = dataclasses.replace(FAST, slow=SLOW.slow, actions=SLOW.actions)
    first = install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps": SLOW, "ltd": FAST, "resps+ltd": both})).tuning
    assert first is not None
    assert len(first.graphs) == 6
    assert len(first.files) == 3
    shared = first.graphs["ltd.depth"].file
    assert shared == first.graphs["resps+ltd.depth"].file
    written = (tiny / shared).read_bytes()
    for learned in ({"resps+ltd": both}, {"ltd": dataclasses.replace(FAST, size=net(12, 3, 9))}):
        after = install(tiny, load_manifest(tiny), a_tuning(tiny, learned)).tuning
        assert after is not None
        assert {path.name for path in tiny.glob("tuned-*")} == set(after.files)
        assert (tiny / shared).read_bytes() == written
        with Decoder(tiny, threads=2) as decoder:
            plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=30), policy="none").tokens
            assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=30), policy=next(iter(learned))).tokens == plain
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps": SLOW}))
    assert not (tiny / shared).exists()  # now nobody does


OTHER_INPUTS = r"engine was tuned with other policy inputs — tune again: resps-tune --engine-dir \S+engine"
TROUBLES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "actions": (lambda t: t["learned"]["resps"]["slow"]["actions"].pop(), r"resps has 2 actions, resps\.slow gives 3 — export again"),
    "inputs": (lambda t: t["learned"]["resps"]["slow"]["net"].update(inputs=["colour"]), OTHER_INPUTS),
    "another network's inputs": (lambda t: t["learned"]["resps"]["slow"]["net"].update(inputs=["tree_scores"]), OTHER_INPUTS),
    "version": (lambda t: t["learned"]["resps"]["slow"]["net"].update(inputs_version=2), OTHER_INPUTS),
    "no version": (
        lambda t: t["learned"]["resps"]["slow"]["net"].pop("inputs_version"),
        r"net has wrong keys: inputs_version — export again",
    ),
    "width": (
        lambda t: t["graphs"]["resps.slow"]["inputs"]["x"].update(shape=[1, 64]),
        r"resps\.slow reads 64 numbers, the engine gives 192",
    ),
    "tree": (lambda t: t.update(static=[65, 16, 16]), r"it has the tree 65,16,16, the engine's trees go up to 64,16,16"),
    "no tree": (lambda t: t.update(static=[5, 1, 2]), r"a tree of depth 1 and width 2 has at most 3 nodes, not 5"),
    "graph": (lambda t: t["graphs"].clear(), r"manifest\.tuning\.graphs lacks resps\.slow of the policy resps"),
    "hash": (lambda t: t["files"].clear(), r"names 'tuned-\w+\.onnx' without its hash"),
    "outside": (lambda t: t["files"].update({"../x": {"sha256": "", "bytes": 1}}), r"names a file outside the directory: '\.\./x'"),
    "missing": (lambda t: t["files"].update({"x.onnx": {"sha256": "", "bytes": 1}}), r"lacks x\.onnx — tune again: resps-tune"),
    "changed": (lambda t: next(iter(t["files"].values())).update(sha256="00"), r"was changed after the tuning — tune again: resps-tune"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_tuning_that_does_not_fit_together_is_refused(tiny: Path, trouble: str) -> None:
    change, says = TROUBLES[trouble]
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps": SLOW}))
    edited(tiny, change)
    with pytest.raises(EngineDirError, match=says):
        Decoder(tiny)
    assert load_manifest(tiny, tuned=False).tuning is None  # as resps-tune loads it


def test_tuning_of_another_engine_is_not_used_and_portable_one_is_anywhere(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, engine="another"))
    with caplog.at_level(logging.WARNING), Decoder(tiny) as decoder:
        assert isinstance(decoder._policy, FixedPolicy)
    assert "tuned for another engine: a fixed tree is used" in caplog.text
    caplog.clear()
    install(tiny, load_manifest(tiny), a_tuning(tiny, machine="another", portable=True))
    with caplog.at_level(logging.WARNING), Decoder(tiny, threads=1) as decoder:
        assert isinstance(decoder._policy, Watchdog)
    assert not caplog.text


def test_report_shows_everything(tiny: Path) -> None:
    file = tiny.parent / "page.html"
    assert tune(tiny, "--report", str(file), "--dry-run") == 0
    text = file.read_text()
    for words in ("plain decoding", "cost model", "Re-SpS and LTD", "oracle", "regret", "What a round costs here", "1,0,0"):
        assert words in text, words
    assert text.count("<svg") == 3
    assert not re.search(r"<script|<link|src=|@import", text)  # one file that needs no other
    assert not list(tiny.glob("tuned-*"))


def test_a_report_without_a_place_says_so(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune(tiny, "--report", str(tiny.parent / "no" / "page.html"), "--policy", "cost-model") == 1
    assert "no directory" in capfd.readouterr().err
    assert load_manifest(tiny).tuning is None
