"""scripts/lab/policies: what validate_replay, repeated_tunes and temperatures compute of what they measured."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from export.tuning.load.compare import Fitted, Setting
from export.tuning.tune import Candidates
from policy import Calibration, TreeSpec
from runtime.manifest.tuning import SampledTuning
from scripts.lab.policies import repeated_tunes, temperatures, validate_replay
from scripts.lab.policies.fitted import Closed
from scripts.lab.policies.repeated_tunes import Installed, agreement, equal, installed
from scripts.lab.policies.temperatures import one_lane, resampled, several_lanes
from scripts.lab.policies.validate_replay import Case, Ran, as_read, by_clock, num_different, replayed
from tests.support.load_answers import FOUR, ONE, a_turn
from tests.support.toy_answers import LATENCY, TREE, toy_answers

FOREVER = float("inf")
EASY, HARD = toy_answers(2)
FIT = Calibration(1.0, 0.0, 0.0, 0.25, 0.1, TREE)


def a_fit(*tree: int) -> Closed:
    """The policies where ``tree`` was the best for every number of lanes."""
    spec = TreeSpec(*tree)
    setting = Setting(LATENCY.for_lanes(), [spec], spec, TreeSpec(*TREE))
    return Closed(Candidates(spec, FIT, {}), Fitted((spec,) * 4, spec, FIT), setting)


def test_the_clock_counts_tokens_but_the_first_of_each_answer() -> None:
    turn = a_turn("none", FOUR, 0)  # 5 and 3 tokens in 2 seconds, 5 passes of 15 rows
    assert by_clock(turn, 4) == Ran(3.0, 5, 3.0)
    alone = by_clock(a_turn("none", ONE, 0), 1)
    assert alone.rate == pytest.approx(6 / 1.3)  # the waits behind the first tokens


def test_rows_of_the_table_compare_within_a_turn() -> None:
    clock = {
        "none": [Ran(10.0, 50, 2.0), Ran(20.0, 50, 2.0)],
        "fixed": [Ran(12.0, 30, 4.0), Ran(22.0, 30, 4.0)],
        "table": [Ran(15.0, 30, 4.0)],
        "cost-model": [],
    }
    simulated = dict.fromkeys(clock, Ran(20.0, 31, 4.5)) | {"none": Ran(16.0, 50, 2.0)}
    plain, fixed, table = validate_replay.described(4, clock, simulated)
    assert plain.split("|")[3:9] == [" 15.0 (10.0-20.0) ", " 16.0 ", " +6.7% ", " 1.000 (1.000-1.000) ", " 1.000 ", " +0.0% "]
    assert fixed.split("|")[3:9] == [" 17.0 (12.0-22.0) ", " 20.0 ", " +17.6% ", " 1.150 (1.100-1.200) ", " 1.250 ", " +8.7% "]
    assert fixed.split("|")[9:13] == [" 30 ", " 31 ", " 4.00 ", " 4.50 "]
    assert table.split("|")[6] == " 1.500 (1.500-1.500) "  # of the first turn, not of the medians
    assert {line.count("|") for line in (plain, fixed, table)} == {validate_replay.HEADER.split("\n")[0].count("|")}


def test_a_replay_has_the_prompt_tokens_and_the_lengths_of_the_clock() -> None:
    turn, case = a_turn("none", FOUR, 0), Case(4, (), [EASY, HARD])  # 4 tokens of each prompt were cached
    read = as_read(case, [turn])
    assert [traces[1].prompt_tokens for traces in read.answers] == [16, 16]
    assert [traces[1].prompt_tokens for traces in case.answers] == [20, 20]
    assert num_different(case, [turn, turn]) == 4
    short = [
        {1: replace(traces[1], scores=traces[1].scores[:count], path=traces[1].path[:count])} for traces, count in ((EASY, 4), (HARD, 2))
    ]
    assert num_different(Case(4, (), short), [turn]) == 0


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_replay_counts_rounds_and_rows(lanes: int) -> None:
    case, fit = Case(lanes, (), [EASY] * 4), a_fit(*TREE)
    plain, fixed = (replayed(name, case, fit, LATENCY, None) for name in ("none", "fixed"))
    assert plain.rounds * plain.rows == pytest.approx(240)
    assert plain.rounds == pytest.approx(240 / lanes, abs=lanes - 1)  # prompts are read one after another
    assert fixed.rounds < plain.rounds / 5
    assert fixed.rate > plain.rate


def test_policies_are_equal_if_one_lies_in_the_other_interval() -> None:
    assert equal((0.9, 1.1), (1.0, 1.0))
    assert equal((1.0, 1.0), (0.9, 1.1))
    assert not equal((1.01, 1.1), (1.0, 1.0))
    assert not equal((0.9, 1.01), (1.0, 1.1))  # they overlap, but not so far
    assert not equal((float("nan"), float("nan")), (0.5, 2.0))


def test_tunes_agree_only_if_both_find_their_policies_equal() -> None:
    sure = {"cost-model": (1.01, 1.03), "ltd": (0.97, 1.04), "none": (0.7, 0.8)}
    unsure = {"cost-model": (0.98, 1.03), "none": (0.7, 0.8)}
    tree, other = [5, 2, 3], [4, 2, 2]
    model, fixed = Installed("cost-model", tree, unsure), Installed("fixed", tree, unsure)
    assert agreement(model, Installed("cost-model", other, sure)) == "the same"
    assert agreement(model, fixed) == "equal"
    assert agreement(Installed("cost-model", tree, sure), fixed) == "different"  # the first one is sure
    assert agreement(Installed("ltd", tree, sure), model) == "different"  # the second one knows nothing of it
    assert agreement(fixed, Installed("fixed", tree, sure)) == "the same"
    assert agreement(fixed, Installed("fixed", other, {"none": (0.65, 0.76)})) == "equal"
    assert agreement(fixed, Installed("fixed", other, {"none": (0.5, 0.6)})) == "different"


def test_pairs_of_tunes_are_counted_by_kind() -> None:
    intervals = {"cost-model": (0.99, 1.05), "none": (0.7, 0.8)}
    sampled = asdict(SampledTuning("none", (2, 1, 1), FIT, {}, {"none": (0.9, 0.95)}))
    tunes = [
        installed(json.loads(json.dumps({"policy": name, "static": (5, 2, 3), "intervals": intervals, "sampled": sampled})))
        for name in ("fixed", "cost-model", "fixed")
    ]
    lines = repeated_tunes.described(tunes)
    assert lines[1] == "tune 2, greedy: cost-model, 0.990 to 1.050 over the tree 5,2,3"
    assert lines[-2:] == [
        "greedy, pairs of tunes: 1 the same, 2 equal, 0 different",
        "sampled, pairs of tunes: 3 the same, 0 equal, 0 different",
    ]


def test_one_lane_adds_up_single_answers() -> None:
    fits = {0.0: a_fit(*TREE), 1.0: a_fit(1, 0, 0)}
    rates = one_lane([EASY, HARD], fits, LATENCY, None)
    easy, hard, both = rates([0]), rates([1]), rates([0, 1])
    assert easy["fixed", 0.0] > 2 > 1 > hard["fixed", 0.0]
    assert hard["fixed", 0.0] < both["fixed", 0.0] < easy["fixed", 0.0]
    assert both["fixed", 1.0] == pytest.approx(1, abs=0.01)  # the tree is plain decoding, its decisions are charged


def test_several_lanes_use_the_table_of_their_temperature() -> None:
    fits = {0.0: a_fit(*TREE), 1.0: a_fit(1, 0, 0)}
    rates = several_lanes([EASY, HARD], fits, LATENCY, 2)
    easy = rates([0] * 8)
    assert easy["table", 0.0] > 1.5
    assert easy["table", 1.0] == pytest.approx(1, abs=0.05)
    assert easy["cost-model", 0.0] > 1.3


def test_intervals_are_of_the_same_questions_for_all() -> None:
    worth = [1.0, 2.0, 4.0]
    samples = resampled(lambda chosen: {("a", 0.0): sum(worth[each] for each in chosen), ("a", 1.0): 2.0}, 3, 40, FOREVER)
    assert samples[0]["a", 0.0] == 7
    assert len({each["a", 0.0] for each in samples}) > 5
    assert len(resampled(lambda chosen: {}, 3, 40, 0.0)) == 1  # no time for more
    twice = [{("a", 0.0): each["a", 0.0], ("a", 1.0): 2 * each["a", 0.0]} for each in samples]
    header, _, line = temperatures.described({0.0: twice, 1.0: twice})[:3]
    assert header == "\n| a, tested at | fitted at 0 | fitted at 1 | lowest over highest |"
    assert line.startswith("| 0 | 7.000 (")
    assert line.endswith("| 0.500 (0.500 to 0.500) |")
