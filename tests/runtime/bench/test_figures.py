"""resps-bench: the figures equal their definitions, and tables and report show all of them."""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np
import pytest

from runtime.bench.figures import Cell, Table, acceptance, per_token, tabulate
from runtime.bench.record import BASELINE, ContenderRecord, Skipped
from runtime.bench.report import findings_of, report
from runtime.bench.tables import headlines, markdown, tables, verdicts
from tests.support.bench_answers import a_measurement, an_answer, both, drawn


def cell(table: Table, contender: str, name: str = "a") -> Cell:
    (found,) = (each for each in table.cells if (each.set, each.contender) == (name, contender))
    return found


def test_medians_and_sums_are_those_of_a_small_example() -> None:
    plain = [an_answer(BASELINE, [1] * 10, seconds, question=place) for place, seconds in enumerate((1.0, 1.0, 1.0))]
    faster = [an_answer("x", [2] * 5, seconds, question=place) for place, seconds in enumerate((0.5, 0.25, 1.0))]
    found = cell(tabulate(a_measurement([*plain, *faster])), "x")
    assert found.ratio is not None
    assert found.ratio.median.value == pytest.approx(2.0)  # of 2, 4 and 1
    assert found.ratio.quartiles == pytest.approx((1.5, 3.0))
    assert found.ratio.sums.value == pytest.approx(3.0 / 1.75)
    assert found.tokens_per_second == pytest.approx(30 / 1.75)  # the first token of each answer is prefill's
    assert found.tokens_per_cycle == pytest.approx(2.0)
    assert found.prefill_tokens_per_second == pytest.approx(20.0)
    assert found.cycle_ms == pytest.approx(1e3 * 1.75 / 15)
    assert (found.draft, found.verify, found.host) == pytest.approx((0.2, 0.7, 0.1))
    assert found.first_token.p50 == pytest.approx(600)
    assert (found.trees, found.rows) == ({"3,2,1": 15}, {3: 15})


def test_turns_of_a_question_are_one_ratio() -> None:
    plain = [an_answer(BASELINE, [1] * 10, 1.0), an_answer(BASELINE, [1] * 30, 3.0, turn=1)]
    other = [an_answer("x", [1] * 10, 0.5), an_answer("x", [1] * 30, 3.5, turn=1)]
    found = cell(tabulate(a_measurement([*plain, *other])), "x")
    assert found.ratio is not None
    assert (found.ratio.median.value, found.questions, found.answers) == (pytest.approx(1.0), 1, 2)
    assert found.ratio.median.low is None  # one question says nothing about the spread


@pytest.mark.parametrize("seed", range(5))
def test_laws_of_the_table(seed: int) -> None:
    answers = drawn(seed)
    table = tabulate(a_measurement(answers))
    assert len(table.cells) == 6
    for each in table.cells:
        assert each.ratio is not None
        for spread in (each.ratio.median, each.ratio.sums):
            assert spread.low is not None
            assert spread.high is not None
            assert spread.low <= spread.value <= spread.high
            assert each.contender != BASELINE or (spread.low, spread.value, spread.high) == pytest.approx((1.0, 1.0, 1.0))
        assert each.ratio.quartiles[0] <= each.ratio.median.value <= each.ratio.quartiles[1]
        assert (each.draft or 0) + (each.verify or 0) + (each.host or 0) == pytest.approx(1)
        assert sum(each.trees.values()) == sum(each.rows.values()) == each.cycles
        assert each.tokens_per_cycle == pytest.approx(1.0 if each.contender == BASELINE else each.tokens / each.cycles)
        assert each.differing_tokens == 0
    for mean in table.means:
        cells = [each for each in table.cells if each.contender == mean.contender]
        assert mean.median is not None
        assert mean.median.value == pytest.approx(np.mean([each.ratio.median.value for each in cells if each.ratio]))
        assert mean.tokens_per_cycle == pytest.approx(np.mean([each.tokens_per_cycle for each in cells]))
    for pooled in table.pooled:
        assert pooled.tokens == sum(each.tokens for each in table.cells if each.contender == pooled.contender)


def test_slower_clock_changes_no_ratio_and_a_slower_contender_its_own() -> None:
    answers = drawn(3)

    def slowed(factor: float, *contenders: str) -> Table:
        return tabulate(a_measurement([
            dataclasses.replace(each, stats=dataclasses.replace(each.stats, decode_seconds=each.stats.decode_seconds * factor))
            if each.contender in contenders else each
            for each in answers
        ]))  # fmt: skip

    def ratios(table: Table) -> dict[tuple[str | None, str], float]:
        return {(each.set, each.contender): each.ratio.median.value for each in table.cells if each.ratio}

    before = ratios(slowed(1.0))
    assert ratios(slowed(7.0, BASELINE, "x", "y")) == pytest.approx(before)
    after = ratios(slowed(2.0, "x"))
    assert after == pytest.approx({key: value / 2 if key[1] == "x" else value for key, value in before.items()})


def test_order_of_answers_does_not_matter_but_for_the_order_of_sets() -> None:
    answers = drawn(4)
    shuffled = random.Random(0).sample(answers, len(answers))
    one, other = tabulate(a_measurement(answers)), tabulate(a_measurement(shuffled))
    for each in one.cells:
        found = cell(other, each.contender, str(each.set))
        assert found.tokens_per_second == pytest.approx(each.tokens_per_second)
        assert (found.acceptance, found.rows, found.differing_tokens) == (each.acceptance, each.rows, each.differing_tokens)


def test_answers_of_one_token_have_no_speed() -> None:
    answers = [an_answer(contender, [], 0.0) for contender in (BASELINE, "x")]
    alone = tabulate(a_measurement(answers))
    assert cell(alone, "x").ratio is None
    assert cell(alone, "x").tokens_per_second is None
    assert all(mean.median is None for mean in alone.means)
    beside = tabulate(a_measurement([*answers, an_answer(BASELINE, [1] * 4, 1.0, question=1), an_answer("x", [2, 2], 0.5, question=1)]))
    found = cell(beside, "x")
    assert found.ratio is not None
    assert (found.ratio.median.value, found.questions) == (pytest.approx(2.0), 2)
    for table, measured in ((alone, a_measurement(answers)),):
        assert "-" in "\n".join(markdown(tables(measured, table)[0]))
        assert "<svg" in report(findings_of(measured))


def test_acceptance_by_depth() -> None:
    assert acceptance([0, 1, 3]) == pytest.approx((2 / 3, 1 / 2, 1))
    assert acceptance([2, 2]) == (1, 1)
    assert acceptance([0, 0]) == acceptance([]) == ()


def test_tokens_share_the_wait_for_their_delivery() -> None:
    waits, counts = np.array([0.03, 0.01, 0.02]), np.array([3, 1, 2])
    shares = per_token(waits, counts)
    assert shares.tolist() == pytest.approx([0.01] * 6)
    assert per_token(np.array([0.04, 0.01]), np.array([4, 1])).sum() == pytest.approx(0.05)


def test_differing_tokens_are_counted_and_said_loudly() -> None:
    plain = [an_answer(BASELINE, [1] * 3, 1.0, question=place) for place in range(2)]
    same, other = an_answer("x", [3], 1.0), an_answer("x", [3], 1.0, question=1, tokens=(0, 1, 7))
    measurement = a_measurement([*plain, same, other])
    table = tabulate(measurement)
    found = cell(table, "x")
    assert (found.differing_answers, found.differing_tokens) == (1, 2)  # one other token, one missing
    (line,) = verdicts(measurement, table)
    assert line == "NOT LOSSLESS: x gives other answers than none: 1 of 2 answers, 2 tokens differ"
    assert next(headlines(measurement, table)) == line
    assert "1/2" in "\n".join(markdown(tables(measurement, table)[1]))
    assert f"<li class='loud'>{line}" in report(findings_of(measurement))
    (line,) = verdicts(*both([*plain, same, an_answer("x", [3], 1.0, question=1)]))
    assert line == "lossless: 0 of 8 tokens differ from none's"


def test_given_up_left_out_and_interrupted_are_said_too() -> None:
    measurement, table = both(drawn(1))
    contenders = (measurement.contenders[0], ContenderRecord("x", "eagle", None, "3.0 tokens/s against 4.0"), measurement.contenders[2])
    skipped = (Skipped("a", 3, 1, "the prompt has too many tokens"),)
    lines = list(verdicts(dataclasses.replace(measurement, contenders=contenders, skipped=skipped, interrupted=True), table))
    assert [line.split(":")[0] for line in lines] == ["lossless", "GIVEN UP", "LEFT OUT", "INTERRUPTED"]
    assert "question 3, from turn 1" in lines[2]


def test_report_has_every_contender_and_set_and_needs_no_other_file() -> None:
    measurement, _ = both(drawn(2, sets=("first & best", "b"), contenders=(BASELINE, "x<y", "16,5,4")))
    page = report(findings_of(measurement))
    text_only = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    for text in ("first &amp; best", "b", BASELINE, "x&lt;y", "16,5,4", "mean"):
        assert f">{text}</td>" in text_only or f">{text}</th>" in text_only
    assert page.count("<svg") == page.count("</svg>") == 5
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page)
    assert report(findings_of(measurement)) == page
