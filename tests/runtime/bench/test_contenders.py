"""resps-bench: which drafts, policies and trees are compared."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from policy import PLAIN, FixedPolicy, TreeSpec, Watchdog
from runtime import Decoder
from runtime.bench.contenders import Contender, make_contenders
from runtime.bench.record import BASELINE, ContenderRecord
from runtime.bench.tables import label
from runtime.errors import BenchError, EngineDirError
from runtime.manifest.load import load_manifest
from runtime.manifest.tuning import SampledTuning, Tuning
from tests.support.bench_answers import a_tuning
from tests.support.tunings import LATENCY

TREE, SMALL = TreeSpec(7, 4, 2), TreeSpec(3, 2, 1)


def contenders_of(
    engine: Path,
    *names: str,
    trees: Sequence[TreeSpec] = (),
    drafts: Sequence[str] = ("eagle",),
    tuning: Tuning | None = None,
    temperature: float = 0.0,
) -> list[Contender]:
    """The contenders of a copy of the engine with this tuning. Their Decoders are closed."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        copy = Path(shutil.copytree(engine, Path(folder) / "engine"))
        manifest = load_manifest(copy)
        if tuning:
            tuning = dataclasses.replace(tuning, engine=manifest.engine_id)
        (copy / "manifest.json").write_text(dataclasses.replace(manifest, tuning=tuning).to_json())
        decoders = [stack.enter_context(Decoder(copy, draft=draft, threads=2, policy="none")) for draft in drafts]
        return make_contenders(names, trees, decoders, temperature)


def names(contenders: Sequence[Contender]) -> list[str]:
    return [contender.name for contender in contenders]


def test_default_contenders_are_the_default_tree_and_what_was_tuned(echo_engine: Path) -> None:
    assert names(contenders_of(echo_engine)) == [BASELINE, "5,3,2"]
    assert names(contenders_of(echo_engine, drafts=["none"])) == [BASELINE]
    assert names(contenders_of(echo_engine, drafts=["ngram"], tuning=a_tuning())) == [BASELINE, "6,5,2"]
    tuned = contenders_of(echo_engine, tuning=a_tuning())
    assert names(tuned) == [BASELINE, "5,3,2", "fixed", "cost-model"]
    assert [contender.record.tree for contender in tuned] == ["1,0,0", "5,3,2", "6,2,3", None]
    assert names(contenders_of(echo_engine, tuning=a_tuning(static=(5, 3, 2)))) == [BASELINE, "5,3,2", "cost-model"]


@pytest.mark.parametrize(("temperature", "tree"), [(0.0, "6,2,3"), (0.3, "6,2,3"), (1.0, "3,2,1")])
def test_policies_are_those_of_the_temperature(echo_engine: Path, temperature: float, tree: str) -> None:
    tuning = a_tuning()
    assert tuning.cost_model is not None
    tuning = dataclasses.replace(tuning, sampled=SampledTuning("fixed", (3, 2, 1), tuning.cost_model, {}, {}))
    for named in ((), ("fixed",)):
        found = contenders_of(echo_engine, *named, tuning=tuning, temperature=temperature)
        assert {each.name: each.record.tree for each in found}["fixed"] == tree


def test_named_contenders_come_after_the_baseline_once_each(echo_engine: Path) -> None:
    found = contenders_of(echo_engine, "fixed", "none", "fixed", trees=[PLAIN, TREE, TREE], tuning=a_tuning())
    assert names(found) == [BASELINE, "fixed", "1,0,0", "7,4,2"]
    assert found[1].trees == [TreeSpec(6, 2, 3)]


def test_every_draft_meets_every_policy_and_tree(echo_engine: Path) -> None:
    found = contenders_of(echo_engine, "none", "fixed", trees=[TREE], drafts=["eagle+ngram", "ngram"], tuning=a_tuning())
    assert names(found) == [BASELINE, "eagle+ngram fixed", "eagle+ngram 7,4,2", "ngram fixed", "ngram 7,4,2"]
    assert [(each.record.draft, each.record.tree) for each in found] == [
        ("none", "1,0,0"),
        ("eagle+ngram", "6,2,3"),
        ("eagle+ngram", "7,4,2"),
        ("ngram", "6,5,2"),
        ("ngram", "7,4,2"),
    ]
    assert [each.decoder.draft for each in found] == ["eagle+ngram"] * 3 + ["ngram"] * 2
    assert [label(each.record) for each in found[:3]] == [BASELINE, "eagle+ngram fixed (6,2,3)", "eagle+ngram 7,4,2"]
    assert names(contenders_of(echo_engine, drafts=["eagle", "none", "ngram"])) == [BASELINE, "eagle 5,3,2", "ngram 6,5,2"]


def test_tuning_of_another_machine_is_refused_with_one_warning(echo_engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert names(contenders_of(echo_engine, tuning=a_tuning(machine="another"))) == [BASELINE, "5,3,2"]
    assert caplog.text.count("the policy was tuned on") == 1
    with pytest.raises(EngineDirError, match="cost-model has not been tuned"):
        contenders_of(echo_engine, "cost-model", tuning=a_tuning(machine="another"))


@pytest.mark.parametrize("tree", [TreeSpec(65, 8, 8), TreeSpec(5, 17, 2), TreeSpec(5, 1, 17)], ids=str)
def test_trees_that_would_be_cut_are_refused(echo_engine: Path, tree: TreeSpec) -> None:
    with pytest.raises(BenchError, match="larger than the engine allows"):
        contenders_of(echo_engine, trees=[tree])


def test_a_watchdog_that_gave_up_is_recorded(eagle_decoder: Decoder) -> None:
    watched = Watchdog(FixedPolicy(TREE), SMALL, LATENCY)
    assert Contender("x", watched, eagle_decoder).record == ContenderRecord("x", "eagle", None, None)
    watched.fallback_reason = "slow"
    assert Contender("x", watched, eagle_decoder).record.given_up == "slow"
