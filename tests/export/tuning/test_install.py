"""Installed tunings run as simulated; those that do not fit the engine or the machine are refused or ignored."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.tuning.install
from export.tuning.errors import TuningError
from export.tuning.install import install
from export.tuning.learning.nets import Mlp, mlp_graph
from export.tuning.replay.simulation import replay
from policy import FixedPolicy, Guarded, Ltd, TreeSpec, Watchdog
from runtime import Decoder, EngineDirError, SamplingParams
from runtime.manifest.load import load_manifest
from runtime.manifest.tuning import SampledTuning
from tests.support.eagle_engines import prompt_of
from tests.support.traces import trace_prompt
from tests.support.tunings import CALIBRATION, FAST, LATENCY, SLOW, a_tuning, edit_tuning, net


@pytest.mark.parametrize("changes", [{"machine": "another"}, {"threads": 7}], ids=str)
def test_tuning_of_another_machine_is_ignored_with_a_warning(
    engine_dir: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, **changes))
    with caplog.at_level(logging.WARNING), Decoder(engine_dir, threads=2) as decoder:
        assert isinstance(decoder._policy, FixedPolicy)
    assert "so a fixed tree is used — tune it here: resps-tune" in caplog.text
    with pytest.raises(EngineDirError, match="cost-model has not been tuned for this engine on this machine — resps-tune"):
        Decoder(engine_dir, threads=2, policy="cost-model")


def test_engine_that_changed_during_tuning_is_not_modified(engine_dir: Path) -> None:
    manifest = load_manifest(engine_dir)
    other = dataclasses.replace(manifest, model="other")
    with pytest.raises(TuningError, match="was exported again while it was tuned — tune again"):
        install(engine_dir, other, a_tuning(engine_dir))
    assert load_manifest(engine_dir) == manifest


def test_leftovers_of_a_killed_tuning_are_removed(engine_dir: Path) -> None:
    (engine_dir / ".tuning.partial-abc").mkdir()
    (engine_dir / ".tuning.partial-abc" / "lock").touch()
    (engine_dir / "tuned-notes.md").write_text("mine")
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir))
    assert not list(engine_dir.glob(".tuning*"))
    assert (engine_dir / "tuned-notes.md").read_text() == "mine"


def test_untuned_policy_and_unknown_name(echo_engine: Path) -> None:
    with pytest.raises(EngineDirError, match="cost-model has not been tuned"):
        Decoder(echo_engine, policy="cost-model")
    with pytest.raises(ValueError, match="unknown policy 'best' — choose from none, fixed, table, cost-model"):
        Decoder(echo_engine, policy="best")


def test_lanes_use_the_table_of_a_tuning_and_an_older_tuning_has_none(engine_dir: Path) -> None:
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, table=((5, 3, 2), (3, 2, 1), (1, 0, 0))))
    params = SamplingParams(max_new_tokens=40)
    with Decoder(engine_dir, threads=2, lanes=2) as decoder:
        assert {"table", "cost-model"} <= set(decoder.policies)
        plain = decoder.generate(prompt_of(20), params, policy="none").tokens
        found = decoder.generate(prompt_of(20), params, policy="table")
        assert found.tokens == plain
        assert "5,3,2" in found.stats.actions
    edit_tuning(engine_dir, lambda tuning: (tuning.pop("table"), tuning["latency"].pop("lanes")))
    with Decoder(engine_dir, threads=2, lanes=2) as decoder:
        assert "table" not in decoder.policies
        with pytest.raises(EngineDirError, match="table has not been tuned"):
            decoder.policy("table")
        assert decoder.generate(prompt_of(20), params, policy="cost-model").tokens == plain


def test_a_request_gets_the_policy_for_its_temperature(engine_dir: Path) -> None:
    sampled = SampledTuning("fixed", (2, 1, 1), dataclasses.replace(CALIBRATION, bias=-3.0), {"none": 1.0}, {})
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, sampled=sampled))
    with Decoder(engine_dir, draft="eagle", threads=2) as decoder:
        for temperature, tree in ((0.0, "9,4,2"), (0.2, "9,4,2"), (0.7, "2,1,1"), (1.0, "2,1,1")):
            params = SamplingParams(temperature=temperature, seed=1, max_new_tokens=20)
            found = decoder.generate(prompt_of(20), params)
            assert tree in found.stats.actions, temperature
            assert found.tokens == decoder.generate(prompt_of(20), params, policy="none").tokens
        models = [decoder.policy("cost-model", temperature) for temperature in (0.0, 1.0)]
        assert [each.policy.calibration.bias for each in models] == [CALIBRATION.bias, -3.0]  # type: ignore[attr-defined]
        assert decoder.policy("cost-model", 0.9) is models[1]  # a watchdog's verdict holds for later requests
    edit_tuning(engine_dir, lambda tuning: tuning["sampled"].update(static=[99, 4, 2]))
    with pytest.raises(EngineDirError, match="does not fit"):
        load_manifest(engine_dir)
    edit_tuning(engine_dir, lambda tuning: (tuning.pop("sampled"), tuning.pop("intervals")))  # as written by an earlier version
    with Decoder(engine_dir, draft="eagle", threads=2) as decoder:
        assert decoder.policy(None, 1.0) is decoder.policy(None)


def test_a_tuned_fixed_tree_pauses_where_it_loses(engine_dir: Path) -> None:
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, policy="fixed"))
    with Decoder(engine_dir, threads=2) as decoder:
        policy = decoder.policy()
        assert isinstance(policy, Guarded)
        assert policy.policy == FixedPolicy(TreeSpec(5, 3, 2))
        assert decoder.totals.guard == "policy"


def test_learned_policies_decide_as_in_replay_and_change_no_token(engine_dir: Path, eagle_decoder: Decoder) -> None:
    """The numpy networks in simulated time and the installed graphs in service take the same decisions."""
    both = dataclasses.replace(FAST, slow=SLOW.slow, actions=SLOW.actions)
    average = dataclasses.replace(SLOW, slow=net(64, 3), state="average")
    trained = {"resps": SLOW, "ltd": FAST, "resps+ltd": both, "resps-average": average}
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, trained, policy="ltd"))
    answers = [trace_prompt(eagle_decoder, SamplingParams())]
    with Decoder(engine_dir, draft="eagle", threads=2) as tuned:
        plain = tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy="none").tokens
        for name, policy in trained.items():
            watched = tuned.policy(name)
            assert isinstance(watched, Watchdog)
            stats = tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy=watched.policy).stats
            result = replay(policy.runtime_policy(), answers, LATENCY)
            assert (result.cycles, result.tokens) == (stats.cycles, stats.new_tokens - 1), name
            assert tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy=name).tokens == plain
            sampling = SamplingParams(temperature=0.9, seed=5, max_new_tokens=50)
            sampled = [tuned.generate(prompt_of(20), sampling, policy=choice).tokens for choice in ("none", name)]
            assert sampled[0] == sampled[1]
        assert isinstance(tuned._policy, Watchdog)
        assert isinstance(tuned._policy.policy, Ltd)  # the policy that the tuning chose


def test_network_that_gives_nan_is_replaced_by_the_fixed_tree(engine_dir: Path) -> None:
    broken = Mlp(tuple((weight * np.float32("nan"), bias) for weight, bias in net(192, 3).layers), "relu")
    result = a_tuning(engine_dir, {"resps": dataclasses.replace(SLOW, slow=broken)}, policy="resps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.tuning.install, "_check", lambda *_: None)
        install(engine_dir, load_manifest(engine_dir), result)
    with Decoder(engine_dir, threads=2) as decoder:
        plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40), policy="none").tokens
        assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40)).tokens == plain
        assert isinstance(decoder._policy, Watchdog)
        assert "logits are not finite" in str(decoder._policy.fallback_reason)


def test_graph_that_differs_from_the_network_is_not_installed(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_manifest(engine_dir)
    other = mlp_graph(net(192, 3, seed=8))
    monkeypatch.setattr(export.tuning.install, "mlp_graph", lambda _: other)
    with pytest.raises(TuningError, match=r"the graph of resps\.slow differs from the trained network"):
        install(engine_dir, before, a_tuning(engine_dir, {"resps": SLOW}))
    assert load_manifest(engine_dir) == before
    assert not [*engine_dir.glob(".tuning*"), *engine_dir.glob("tuned-*")]


def test_policies_with_the_same_network_share_its_file(engine_dir: Path) -> None:
    """The file stays as long as any policy uses it."""
    both = dataclasses.replace(FAST, slow=SLOW.slow, actions=SLOW.actions)
    first = install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, {"resps": SLOW, "ltd": FAST, "resps+ltd": both})).tuning
    assert first is not None
    assert len(first.graphs) == 6
    assert len(first.files) == 3
    shared = first.graphs["ltd.depth"].file
    assert shared == first.graphs["resps+ltd.depth"].file
    written = (engine_dir / shared).read_bytes()
    for learned in ({"resps+ltd": both}, {"ltd": dataclasses.replace(FAST, size=net(12, 3, 9))}):
        after = install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, learned)).tuning
        assert after is not None
        assert {path.name for path in engine_dir.glob("tuned-*")} == set(after.files)
        assert (engine_dir / shared).read_bytes() == written
        with Decoder(engine_dir, threads=2) as decoder:
            plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=30), policy="none").tokens
            assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=30), policy=next(iter(learned))).tokens == plain
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, {"resps": SLOW}))
    assert not (engine_dir / shared).exists()


OTHER_INPUTS = r"engine was tuned with other policy inputs — tune again: resps-tune --engine-dir \S+engine"
EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
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


@pytest.mark.parametrize("edit", EDITS)
def test_inconsistent_tuning_is_refused(engine_dir: Path, edit: str) -> None:
    change, message = EDITS[edit]
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, {"resps": SLOW}))
    edit_tuning(engine_dir, change)
    with pytest.raises(EngineDirError, match=message):
        Decoder(engine_dir)
    assert load_manifest(engine_dir, tuned=False).tuning is None  # resps-tune loads it in this way


def test_tuning_of_another_engine_is_ignored_and_a_portable_one_is_used(engine_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, engine="another"))
    with caplog.at_level(logging.WARNING), Decoder(engine_dir) as decoder:
        assert isinstance(decoder._policy, FixedPolicy)
    assert "tuned for another engine, so a fixed tree is used" in caplog.text
    caplog.clear()
    install(engine_dir, load_manifest(engine_dir), a_tuning(engine_dir, machine="another", portable=True))
    with caplog.at_level(logging.WARNING), Decoder(engine_dir, threads=1) as decoder:
        assert isinstance(decoder._policy, Watchdog)
    assert not caplog.text
