"""resps-bench with several clients: the arithmetic of its figures, its tables and its report, on hand-made records."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from runtime.bench.figures import Percentiles
from runtime.bench.load.figures import tabulate, turn_figures
from runtime.bench.load.record import Arrivals, LoadMeasurement, as_dict, from_dict
from runtime.bench.load.report import findings_of
from runtime.bench.load.tables import verdicts
from runtime.bench.record import Skipped, read
from runtime.bench.report import report
from runtime.bench.tables import markdown
from runtime.errors import BenchError
from tests.support.load_answers import FOUR, ONE, POISSON, a_run, a_turn, an_answer


def test_rates_are_over_the_seconds_from_the_first_arrival_to_the_last_token() -> None:
    answers = [an_answer(0, 1.0, 0.5, [0.6, 0.2], [3, 1]), an_answer(1, 2.0, 0.25, [0.75], [2])]
    figures = turn_figures(answers, passes=4, rows=10)
    assert figures.tokens_per_second == pytest.approx((5 + 3) / 2.0)  # 1.0 to 3.0
    assert figures.requests_per_second == pytest.approx(1.0)
    assert figures.prompt_tokens_per_second == pytest.approx(12 / 2.0)  # without the cached ones
    assert figures.cached == pytest.approx(0.4)
    assert figures.tokens_per_cycle == pytest.approx(6 / 3)  # first tokens come from the prompt's passes
    assert figures.rows_per_pass == pytest.approx(2.5)


def test_percentiles_of_first_tokens_and_of_each_tokens_share_of_a_wait() -> None:
    answers = [an_answer(place, 0.0, 0.1 * (place + 1), [0.3], [3]) for place in range(11)]
    figures = turn_figures(answers, 11, 44)
    assert figures.first_token == Percentiles(pytest.approx(600.0), pytest.approx(1090.0))
    assert figures.inter_token == Percentiles(pytest.approx(100.0), pytest.approx(100.0))
    slow = turn_figures([an_answer(0, 0.0, 0.1, [0.4, 0.3], [1, 3])], 2, 8)
    # Four tokens took 400, 100, 100 and 100 ms.
    assert slow.inter_token == Percentiles(pytest.approx(100.0), pytest.approx(391.0))


def test_answers_of_one_token_have_no_inter_token_latency() -> None:
    figures = turn_figures([an_answer(0, 0.0, 0.5, [], [])], 0, 0)
    assert (figures.inter_token, figures.tokens_per_cycle, figures.rows_per_pass) == (None, None, None)
    assert figures.tokens_per_second == pytest.approx(2.0)
    run = a_run([dataclasses.replace(a_turn("1 replica", ONE, 0), answers=(an_answer(0, 0.0, 0.5, [], []),), passes=0, rows=0)])
    assert findings_of(run).tables[1].rows == (("1 client", "1 replica", "500.0", "500.0", "-", "-"),)
    assert report(findings_of(run)).count("<svg") == 3


def test_cells_are_medians_over_turns_and_ratios_pair_the_same_turn() -> None:
    speeds = (1.0, 4.0, 2.0)  # the machine changes from turn to turn
    turns = [a_turn("1 replica", FOUR, number, speed=speed) for number, speed in enumerate(speeds)]
    turns += [
        a_turn("8 lanes", FOUR, number, speed=speed * more) for number, (speed, more) in enumerate(zip(speeds, (3, 2, 5), strict=True))
    ]
    slow, fast = tabulate(a_run(turns)).cells
    assert (slow.tokens_per_second, slow.lowest, slow.highest, slow.ratio) == pytest.approx((8.0, 4.0, 16.0, 1.0))
    assert (fast.tokens_per_second, fast.lowest, fast.highest, fast.ratio) == pytest.approx((32.0, 12.0, 40.0, 3.0))
    assert (fast.requests_per_second, fast.rows_per_pass, fast.turns, fast.answers, fast.tokens) == pytest.approx((8.0, 3.0, 3, 6, 24))
    assert fast.first_token == Percentiles(pytest.approx(750 / 8), pytest.approx(995 / 8))


def test_a_turn_that_the_first_contender_did_not_take_has_no_ratio() -> None:
    turns = [a_turn("1 replica", ONE, 0), a_turn("8 lanes", ONE, 0), a_turn("8 lanes", FOUR, 0)]
    cells = tabulate(a_run(turns)).cells
    assert [(cell.arrivals.name, cell.contender, cell.ratio) for cell in cells] == [
        ("1 client", "1 replica", 1.0),
        ("1 client", "8 lanes", 1.0),
        ("4 clients", "8 lanes", None),
    ]


def test_differing_tokens_are_counted_and_said_loudly() -> None:
    good, bad = a_turn("1 replica", FOUR, 0), a_turn("8 lanes", FOUR, 0)
    bad = dataclasses.replace(bad, answers=(dataclasses.replace(bad.answers[0], tokens=(0, 1, 7)), bad.answers[1]))
    run = a_run([good, bad, a_turn("1 replica", FOUR, 1), a_turn("8 lanes", FOUR, 1)])
    (line,) = verdicts(run, tabulate(run))
    assert line == (
        "NOT LOSSLESS: 8 lanes with 4 clients gives other answers than plain decoding: 1 of 4 answers, 3 tokens differ"
    )  # one other token, two missing
    assert f"<li class='loud'>{line}" in report(findings_of(run))
    assert "1/4" in "\n".join(markdown(findings_of(run).tables[0]))


def test_left_out_dropped_and_interrupted_are_said_too() -> None:
    run = a_run([a_turn("1 replica", ONE, 0)], skipped=(Skipped("a", 3, 0, "too long"),), dropped=2, interrupted=True)
    lines = list(verdicts(run, tabulate(run)))
    assert lines == [
        "lossless: 0 of 8 tokens differ from plain decoding's",
        "LEFT OUT: a, question 3: too long",
        "2 prompts were dropped: longer than --max-prompt-tokens, or asked already",
        "INTERRUPTED: these are the turns that were finished",
    ]


def both_kinds() -> LoadMeasurement:
    arrivals = [ONE, FOUR, POISSON]
    return a_run([a_turn(name, each, number) for number in range(2) for each in arrivals for name in ("1 replica", "8 <lanes>")])


def test_the_report_shows_closed_and_open_loops_and_needs_no_other_file() -> None:
    run = both_kinds()
    page = report(findings_of(run))
    for title in ("Throughput over clients", "First token over clients", "Inter-token latency over clients", "Throughput over arrivals"):
        assert f"<h2>{title}</h2>" in page
    text_only = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    for text in ("1 replica", "8 &lt;lanes&gt;", "1 client", "4 clients", "2.5 requests/s"):
        assert f"<td class=text>{text}</td>" in text_only
    assert page.count("<svg") == page.count("</svg>") == 6
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page)


def test_a_file_gives_the_same_run_back(tmp_path: Path) -> None:
    run, file = both_kinds(), tmp_path / "run.json"
    file.write_text(json.dumps(as_dict(run, tabulate(run))))
    assert from_dict(read(file), file) == run


BROKEN: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "another schema": lambda data: data.update(schema=0),
    "measurement.plain[0] has wrong keys: tokens": lambda data: data["plain"][0].pop("tokens"),
    "does not answer every question": lambda data: data["turns"][0]["answers"].pop(),
    "does not describe": lambda data: data["turns"][0].update(contender="vllm"),
    "of something": lambda data: data["arrivals"].pop(),
    "no token": lambda data: data["turns"][1]["answers"][0].update(tokens=[]),
    "every delivery": lambda data: data["turns"][1]["answers"][0]["waits"].append(1.0),
    "it has no turn": lambda data: data["turns"].clear(),
}


@pytest.mark.parametrize("says", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, says: str) -> None:
    run = both_kinds()
    data = json.loads(json.dumps(as_dict(run, tabulate(run))))
    BROKEN[says](data)
    with pytest.raises(BenchError, match=re.escape(says)):
        from_dict(data, tmp_path / "x.json")


def test_arrivals_have_names() -> None:
    assert [each.name for each in (ONE, FOUR, POISSON, Arrivals(None, 3.0))] == ["1 client", "4 clients", "2.5 requests/s", "3 requests/s"]
