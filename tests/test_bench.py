"""resps-bench: what is asked of whom and when, what the figures mean, and that nothing is lost between measuring and reading."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runtime.bench.measure
from export.tuning.install import install
from export.tuning.outcome import Tuned
from policy import PLAIN, Calibration, FixedPolicy, Surface, TreeSpec, Watched
from runtime import Chunk, Decoder, PromptError, Sampling, Stats
from runtime.bench.arms import Arm, make_arms
from runtime.bench.cli import command
from runtime.bench.grids import grids, headlines, markdown, verdicts
from runtime.bench.machine import this_machine
from runtime.bench.measure import measure, warm_up
from runtime.bench.questions import OWN, Question, read_questions
from runtime.bench.record import BASELINE, SCHEMA, Answer, Engine, Measurement, Rounds, Settings, Skipped, read, to_json
from runtime.bench.record import Arm as RecordedArm
from runtime.bench.report import report
from runtime.bench.table import Cell, Table, acceptance, per_token, tabulate
from runtime.console import run_command
from runtime.cpu import processor_name
from runtime.errors import BenchError, EngineDirError
from runtime.manifest import Tuning, load_manifest
from tests.eagle_engines import export as export_engine
from tests.eagle_engines import write_echo

TREE, SMALL = TreeSpec(7, 4, 2), TreeSpec(3, 2, 1)
SETTINGS = Settings(("a.jsonl",), 10, 20, 0.0, 0, 1)
ARMS = [Arm(BASELINE, FixedPolicy(PLAIN)), Arm("7,4,2", FixedPolicy(TREE)), Arm("small", FixedPolicy(SMALL))]
FITTED = Calibration(1.0, 0.0, 0.5, 0.5, 0.08, (9, 4, 2))
SURFACE = Surface((1, 8), (100, 1000), ((10.0, 17.0), (20.0, 34.0)), (1, 3), (1, 4), ((1.0, 4.0), (2.0, 8.0)), 0.5)

# --- the figures ---


def an_answer(
    arm: str,
    counts: Sequence[int],
    seconds: float,
    *,
    name: str = "a",
    question: int = 0,
    turn: int = 0,
    tokens: Sequence[int] | None = None,
) -> Answer:
    """An answer whose rounds brought ``counts`` tokens in equal times; by default all answers to a question are the same."""
    total = 1 + sum(counts)
    cycles = len(counts)
    stats = Stats(10, total, cycles, 2 * cycles, total - 1 - cycles, 0.0, 0.0, 0.5, seconds, 0.2 * seconds, 0.7 * seconds)
    rounds = Rounds((seconds / max(1, cycles),) * cycles, tuple(counts), tuple(count - 1 for count in counts), (3,) * cycles,
                    ("3,2,1",) * cycles)  # fmt: skip
    return Answer(name, question, turn, arm, tuple(range(total) if tokens is None else tokens), "length", 0.6, stats, rounds)


def a_measurement(answers: Sequence[Answer], **changes: Any) -> Measurement:
    arms = tuple(RecordedArm(name, None, None) for name in dict.fromkeys(answer.arm for answer in answers))
    engine = Engine("0123", "toy", "fp32", "onnxruntime", "cpu", "eagle", "toy", "int8")
    measurement = Measurement(SCHEMA, "2026-01-01", False, SETTINGS, engine, this_machine(), arms, (), tuple(answers))
    return dataclasses.replace(measurement, **changes)


def cell(table: Table, arm: str, name: str = "a") -> Cell:
    (found,) = (each for each in table.cells if (each.set, each.arm) == (name, arm))
    return found


def drawn(seed: int, sets: Sequence[str] = ("a", "b"), arms: Sequence[str] = (BASELINE, "x", "y"), questions: int = 6) -> list[Answer]:
    """Random answers, of two turns each: all arms write the same tokens."""
    choice = random.Random(seed)
    answers = []
    for name in sets:
        for question in range(questions):
            for turn in range(2):
                total = choice.randint(2, 30)
                for arm in arms:
                    counts = [1] * total if arm == BASELINE else []
                    while sum(counts) < total:
                        counts.append(min(choice.randint(1, 4), total - sum(counts)))
                    seconds = len(counts) * choice.uniform(0.01, 0.03)
                    answers.append(an_answer(arm, counts, seconds, name=name, question=question, turn=turn))
    return answers


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
            assert each.arm != BASELINE or (spread.low, spread.value, spread.high) == pytest.approx((1.0, 1.0, 1.0))
        assert each.ratio.quartiles[0] <= each.ratio.median.value <= each.ratio.quartiles[1]
        assert (each.draft or 0) + (each.verify or 0) + (each.host or 0) == pytest.approx(1)
        assert sum(each.trees.values()) == sum(each.rows.values()) == each.cycles
        assert each.tokens_per_cycle == pytest.approx(1.0 if each.arm == BASELINE else each.tokens / each.cycles)
        assert each.differing_tokens == 0
    for mean in table.means:
        cells = [each for each in table.cells if each.arm == mean.arm]
        assert mean.median is not None
        assert mean.median.value == pytest.approx(np.mean([each.ratio.median.value for each in cells if each.ratio]))
        assert mean.tokens_per_cycle == pytest.approx(np.mean([each.tokens_per_cycle for each in cells]))
    for pooled in table.pooled:
        assert pooled.tokens == sum(each.tokens for each in table.cells if each.arm == pooled.arm)


def test_slower_clock_changes_no_ratio_and_a_slower_arm_its_own() -> None:
    answers = drawn(3)

    def slowed(factor: float, *arms: str) -> Table:
        return tabulate(a_measurement([
            dataclasses.replace(each, stats=dataclasses.replace(each.stats, decode_seconds=each.stats.decode_seconds * factor))
            if each.arm in arms else each
            for each in answers
        ]))  # fmt: skip

    def ratios(table: Table) -> dict[tuple[str | None, str], float]:
        return {(each.set, each.arm): each.ratio.median.value for each in table.cells if each.ratio}

    before = ratios(slowed(1.0))
    assert ratios(slowed(7.0, BASELINE, "x", "y")) == pytest.approx(before)
    after = ratios(slowed(2.0, "x"))
    assert after == pytest.approx({key: value / 2 if key[1] == "x" else value for key, value in before.items()})


def test_order_of_answers_does_not_matter_but_for_the_order_of_sets() -> None:
    answers = drawn(4)
    shuffled = random.Random(0).sample(answers, len(answers))
    one, other = tabulate(a_measurement(answers)), tabulate(a_measurement(shuffled))
    for each in one.cells:
        found = cell(other, each.arm, str(each.set))
        assert found.tokens_per_second == pytest.approx(each.tokens_per_second)
        assert (found.acceptance, found.rows, found.differing_tokens) == (each.acceptance, each.rows, each.differing_tokens)


def test_answers_of_one_token_have_no_speed() -> None:
    answers = [an_answer(arm, [], 0.0) for arm in (BASELINE, "x")]
    alone = tabulate(a_measurement(answers))
    assert cell(alone, "x").ratio is None
    assert cell(alone, "x").tokens_per_second is None
    assert all(mean.median is None for mean in alone.means)
    beside = tabulate(a_measurement([*answers, an_answer(BASELINE, [1] * 4, 1.0, question=1), an_answer("x", [2, 2], 0.5, question=1)]))
    found = cell(beside, "x")
    assert found.ratio is not None
    assert (found.ratio.median.value, found.questions) == (pytest.approx(2.0), 2)
    for table, measured in ((alone, a_measurement(answers)),):
        assert "-" in "\n".join(markdown(grids(measured, table)[0]))
        assert "<svg" in report(measured, table)


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
    assert "1/2" in "\n".join(markdown(grids(measurement, table)[1]))
    assert f"<li class='loud'>{line}" in report(measurement, table)
    (line,) = verdicts(*both([*plain, same, an_answer("x", [3], 1.0, question=1)]))
    assert line == "lossless: 0 of 8 tokens differ from none's"


def both(answers: Sequence[Answer]) -> tuple[Measurement, Table]:
    measurement = a_measurement(answers)
    return measurement, tabulate(measurement)


def test_given_up_left_out_and_interrupted_are_said_too() -> None:
    measurement, table = both(drawn(1))
    arms = (measurement.arms[0], RecordedArm("x", None, "3.0 tokens/s against 4.0"), measurement.arms[2])
    skipped = (Skipped("a", 3, 1, "the prompt has too many tokens"),)
    lines = list(verdicts(dataclasses.replace(measurement, arms=arms, skipped=skipped, interrupted=True), table))
    assert [line.split(":")[0] for line in lines] == ["lossless", "GIVEN UP", "LEFT OUT", "INTERRUPTED"]
    assert "question 3, from turn 1" in lines[2]


def test_report_has_every_arm_and_set_and_needs_no_other_file() -> None:
    measurement, table = both(drawn(2, sets=("first & best", "b"), arms=(BASELINE, "x<y", "16,5,4")))
    page = report(measurement, table)
    tables = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    for text in ("first &amp; best", "b", BASELINE, "x&lt;y", "16,5,4", "mean"):
        assert f">{text}</td>" in tables or f">{text}</th>" in tables
    assert page.count("<svg") == page.count("</svg>") == 5
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page)
    assert report(measurement, table) == page


# --- asking ---


class FakeStream:
    """Two tokens a delivery; what they are depends on the prompt and the seed, not on the policy."""

    def __init__(self, tokens: Sequence[int], tree: TreeSpec) -> None:
        self._chunks = iter(
            [Chunk("a", (tokens[0],), 0, None)] + [Chunk("b", tuple(tokens[at : at + 2]), 1, tree) for at in range(1, len(tokens), 2)]
        )
        self.stop = "length"
        self._rounds, self._tokens = 0, 0

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to free."""

    def __next__(self) -> Chunk:
        chunk = next(self._chunks)
        self._rounds += chunk.spec is not None
        self._tokens += len(chunk.tokens)
        return chunk

    @property
    def stats(self) -> Stats:
        return Stats(4, self._tokens, self._rounds, 2 * self._rounds, self._rounds, 2.0, 9.0, 0.1, 0.1 * self._rounds, 0.01, 0.05)


class FakeDecoder:
    """Notes who was asked what. Prompts with the word "long" do not fit."""

    def __init__(self, *, template: bool = True, wrong: Callable[[Any], bool] = lambda policy: False) -> None:
        self.manifest = SimpleNamespace(tokens=SimpleNamespace(chat_template="x" if template else None))
        self.asked: list[tuple[str, str, int | None]] = []
        self.warmed: list[TreeSpec] = []
        self._wrong = wrong

    def encode(self, prompt: Any) -> list[int]:
        text = prompt if isinstance(prompt, str) else json.dumps(prompt)
        if "long" in text:
            raise PromptError("too many tokens")
        return list(text.encode())

    def stream(self, prompt: Sequence[int], *, max_new_tokens: int, sampling: Sampling, policy: Any) -> FakeStream:
        self.asked.append((bytes(prompt).decode(), str(policy.spec), sampling.seed))
        tokens = [(sum(prompt) + (sampling.seed or 0) + place) % 50 for place in range(max_new_tokens)]
        return FakeStream([*tokens[:-1], 99] if self._wrong(policy) else tokens, policy.spec)

    def generate(self, prompt: str, *, max_new_tokens: int, policy: Any) -> None:
        self.warmed.append(policy.spec)

    def forget(self) -> None:
        """Keeps nothing."""


def asked(decoder: FakeDecoder, questions: Sequence[Question], settings: Settings = SETTINGS) -> list[tuple[Answer, ...] | Skipped]:
    return list(measure(decoder, questions, ARMS, settings, lambda done, total: None))  # type: ignore[arg-type]


def test_arms_take_turns_and_all_answer_the_same_prompts() -> None:
    decoder = FakeDecoder()
    questions = [Question("a", 0, ("one", "two")), Question("b", 0, ("three",)), Question("a", 1, ("four",))]
    came = asked(decoder, questions)
    order = [tree for _, tree, _ in decoder.asked]
    names = ["1,0,0", "7,4,2", "3,2,1"]
    assert order == [*names, *names[1:], names[0], names[2], *names[:2], *names]
    for turn in range(4):
        prompts = {prompt for prompt, _, _ in decoder.asked[3 * turn : 3 * turn + 3]}
        assert len(prompts) == 1
    second = json.loads(decoder.asked[3][0])
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == "a" + "b" * 10  # the baseline's, though it was asked last
    assert all(isinstance(each, tuple) and [answer.arm for answer in each] == [BASELINE, "7,4,2", "small"] for each in came)
    places = [(answer.set, answer.question, answer.turn) for each in came if isinstance(each, tuple) for answer in each[:1]]
    assert places == [("a", 0, 0), ("a", 0, 1), ("b", 0, 0), ("a", 1, 0)]
    assert verdicts(*both([answer for each in came if isinstance(each, tuple) for answer in each])).__next__().startswith("lossless")


def test_what_is_written_down_adds_up() -> None:
    (came,) = asked(FakeDecoder(), [Question("a", 0, ("one",))])
    assert isinstance(came, tuple)
    for answer in came:
        assert len(answer.tokens) == answer.stats.new_tokens == 20
        assert sum(answer.rounds.tokens) == 19
        assert len(answer.rounds.waits) == answer.stats.cycles == 10
        assert answer.rounds.nodes == (3,) * 10  # two drafted, and the root
        assert sum(answer.rounds.nodes) == answer.stats.drafted + answer.stats.cycles
        assert answer.first_token_seconds > 0
        assert min(answer.rounds.waits) >= 0


def test_seeds_differ_by_turn_and_not_by_arm() -> None:
    decoder = FakeDecoder()
    settings = dataclasses.replace(SETTINGS, temperature=1.0, seed=2**64 - 1)
    asked(decoder, [Question("a", 0, ("one", "two")), Question("a", 1, ("three",))], settings)
    assert [seed for _, _, seed in decoder.asked] == [2**64 - 1] * 3 + [0] * 3 + [1] * 3


def test_a_wrong_arm_is_found_out() -> None:
    decoder = FakeDecoder(wrong=lambda policy: policy.spec == SMALL)
    came = asked(decoder, [Question("a", number, ("one", "two")) for number in range(2)])
    answers = [answer for each in came if isinstance(each, tuple) for answer in each]
    table = tabulate(a_measurement(answers))
    assert {each.arm: (each.differing_answers, each.differing_tokens) for each in table.pooled} == {
        BASELINE: (0, 0), "7,4,2": (0, 0), "small": (4, 4),
    }  # fmt: skip


def test_what_does_not_fit_is_left_out_with_a_reason() -> None:
    came = asked(FakeDecoder(), [Question("a", 0, ("one", "long", "never asked")), Question("a", 1, ("two",))])
    assert came[1] == Skipped("a", 0, 1, "too many tokens")
    assert [len(each) for each in came if isinstance(each, tuple)] == [3, 3]


def test_without_a_template_turns_are_plain_text() -> None:
    decoder = FakeDecoder(template=False)
    asked(decoder, [Question("a", 0, ("one", "two"))])
    assert (decoder.asked[0][0], decoder.asked[3][0]) == ("one", "one\na" + "b" * 10 + "\ntwo")


def test_every_tree_is_warmed_up_and_no_policy_learns_from_it() -> None:
    decoder = FakeDecoder()
    watched = Watched(FixedPolicy(TREE), SMALL, SURFACE)
    warm_up(decoder, [*ARMS[:1], Arm("watched", watched)])  # type: ignore[arg-type]
    assert decoder.warmed == [PLAIN, SMALL, TREE]
    assert watched == Watched(FixedPolicy(TREE), SMALL, SURFACE)


# --- question files ---


def test_files_of_every_form_take_turns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"turns": ["b", "c"], "category": "x"}\r\n\n{"prompt": "d"}\nplain {text}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_text("one\u2028line\ntwo")
    found = read_questions([tmp_path / "a.jsonl", tmp_path / "b.txt"], 3)
    assert [(each.set, each.number) for each in found] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    assert [each.turns for each in found if each.set == "a"] == [("b", "c"), ("d",), ("plain {text}",)]
    assert found[1].turns == ("one\u2028line",)
    assert len(read_questions([tmp_path / "a.jsonl"], 1)) == 1
    assert {each.set for each in read_questions([], 4)} == {OWN.stem}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("fine\n{broken\n", "line 2 is no JSON"),
        ("fine\n\n{}\n", "line 3 asks nothing"),
        ('{"turns": []}', "line 1 asks nothing"),
        ('{"turns": "text"}', "asks nothing"),
        ('{"turns": ["a", 3]}', "asks nothing"),
        ('{"turns": ["a", " "]}', "asks nothing"),
        ('{"prompt": null}', "asks nothing"),
        ("[" * 10, None),  # text like any other
        ('{"a":' * 100_000, "line 1 is no JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, says: str | None) -> None:
    (tmp_path / "p").write_text(text)
    if says is None:
        assert len(read_questions([tmp_path / "p"], 5)) == 1
        return
    with pytest.raises(PromptError, match=says) as caught:
        read_questions([tmp_path / "p"], 1)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="UTF-8"):
        read_questions([tmp_path / "p"], 1)
    (tmp_path / "x").mkdir()
    for file in (tmp_path / "a.txt", tmp_path / "x" / "a.jsonl"):
        file.write_text("a")
    with pytest.raises(PromptError, match="two prompt files are called a"):
        read_questions([tmp_path / "a.txt", tmp_path / "x" / "a.jsonl"], 1)


# --- arms ---


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_echo(folder / "target", folder / "draft")
    return export_engine(folder / "target", folder / "draft", folder, "--max-context", "250", "--prefill-rows", "16")


def arms_of(engine: Path, *names: str, trees: Sequence[TreeSpec] = (), draft: str = "eagle", tuning: Tuning | None = None) -> list[Arm]:
    """Of a copy of the engine with that tuning."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(engine, Path(folder) / "engine"))
        manifest = load_manifest(copy)
        if tuning:
            tuning = dataclasses.replace(tuning, engine=manifest.engine_id)
        (copy / "manifest.json").write_text(dataclasses.replace(manifest, tuning=tuning).to_json())
        with Decoder(copy, draft=draft, threads=2, policy="none") as decoder:
            return make_arms(names, trees, decoder)


def a_tuning(**changes: Any) -> Tuning:
    found = {"static": (6, 2, 3), "cost_model": FITTED, "surface": SURFACE, "ratios": {"none": 1.0}, "policy": "cost-model"}
    none: dict[str, Any] = {"learned": {}, "graphs": {}, "files": {}}
    here = {"engine": "", "machine": processor_name(), "threads": 2, "portable": False}
    return Tuning(**{**found, **none, **here, **changes})


def names(arms: Sequence[Arm]) -> list[str]:
    return [arm.name for arm in arms]


def test_default_arms_are_what_there_is(engine: Path) -> None:
    assert names(arms_of(engine)) == [BASELINE, "5,3,2"]
    assert names(arms_of(engine, draft="none")) == [BASELINE]
    assert names(arms_of(engine, draft="ngram", tuning=a_tuning())) == [BASELINE, "6,5,2"]
    tuned = arms_of(engine, tuning=a_tuning())
    assert names(tuned) == [BASELINE, "5,3,2", "fixed", "cost-model"]
    assert [arm.recorded.tree for arm in tuned] == ["1,0,0", "5,3,2", "6,2,3", None]
    assert names(arms_of(engine, tuning=a_tuning(static=(5, 3, 2)))) == [BASELINE, "5,3,2", "cost-model"]


def test_named_arms_come_after_the_baseline_once_each(engine: Path) -> None:
    found = arms_of(engine, "fixed", "none", "fixed", trees=[PLAIN, TREE, TREE], tuning=a_tuning())
    assert names(found) == [BASELINE, "fixed", "1,0,0", "7,4,2"]
    assert found[1].trees == [TreeSpec(6, 2, 3)]


def test_tuning_of_another_machine_is_refused_and_said_once(engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert names(arms_of(engine, tuning=a_tuning(machine="another"))) == [BASELINE, "5,3,2"]
    assert caplog.text.count("the policy was tuned on") == 1
    with pytest.raises(EngineDirError, match="cost-model has not been tuned"):
        arms_of(engine, "cost-model", tuning=a_tuning(machine="another"))


@pytest.mark.parametrize("tree", [TreeSpec(65, 8, 8), TreeSpec(5, 17, 2), TreeSpec(5, 1, 17)], ids=str)
def test_trees_that_would_be_cut_are_refused(engine: Path, tree: TreeSpec) -> None:
    with pytest.raises(BenchError, match="larger than the engine allows"):
        arms_of(engine, trees=[tree])


def test_a_guard_that_gave_up_is_recorded() -> None:
    watched = Watched(FixedPolicy(TREE), SMALL, SURFACE)
    assert Arm("x", watched).recorded == RecordedArm("x", None, None)
    watched.pinned = "slow"
    assert Arm("x", watched).recorded.given_up == "slow"


# --- the command ---


@pytest.fixture
def asked_file(tmp_path: Path) -> Path:
    lines = [{"turns": ["the cat sat", "a dog"]}, {"turns": ["a log"]}]
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "dogs.txt").write_text("a dog sat on the log\n")
    return tmp_path / "cats.jsonl"


def bench(engine: Path, *arguments: str | Path) -> int:
    return run_command(command, "resps-bench", ["--engine-dir", str(engine), "--threads", "1", *map(str, arguments)])


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_the_whole_command(engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], temperature: str) -> None:
    """Measured, printed as JSON, read back: the same tables and report, and everything adds up."""
    again, page = tmp_path / "bench.json", tmp_path / "bench.html"
    arguments = ("--tree", "7,4,2", "--tree", "3,2,1", "--max-new-tokens", "24", "--temperature", temperature)
    assert bench(engine, "--prompts", asked_file, asked_file.with_name("dogs.txt"), *arguments, "--json", "--report", page) == 0
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    again.write_text(out)
    measurement = read(again)
    table = tabulate(measurement)
    assert json.loads(to_json(measurement, table)) == json.loads(out)
    assert measurement.sets == ["cats", "dogs"]
    assert [arm.name for arm in measurement.arms] == [BASELINE, "7,4,2", "3,2,1"]
    assert (len(measurement.answers), measurement.skipped, measurement.interrupted) == (12, (), False)
    assert measurement.engine.id == load_manifest(engine).engine_id
    for answer in measurement.answers:
        assert sum(answer.rounds.tokens) == answer.stats.new_tokens - 1 == len(answer.tokens) - 1
        assert sum(answer.rounds.nodes) == answer.stats.drafted + answer.stats.cycles
        assert sum(answer.rounds.accepted) == answer.stats.accepted
        assert sum(answer.rounds.waits) >= 0.9 * answer.stats.decode_seconds
        assert answer.first_token_seconds > answer.stats.prefill_seconds
    assert all(each.differing_tokens == 0 for each in table.pooled)
    assert table.pooled[1].tokens_per_cycle > 1.2  # type: ignore[operator]
    assert measurement.machine.peak_memory
    assert page.read_text(encoding="utf-8") == report(measurement, table)

    assert run_command(command, "resps-bench", ["--from", str(again), "--report", str(tmp_path / "again.html")]) == 0
    out, err = capfd.readouterr()
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert err == ""
    assert out.startswith("lossless: 0 of ")
    for text in ("cats", "dogs", "mean", "7,4,2", "3,2,1", "first token", "peak"):
        assert text in out


def test_interruption_shows_what_there_is(
    engine: Path, asked_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = runtime.bench.measure._ask
    count = 0

    def ask(*arguments: Any) -> tuple[Answer, str]:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(runtime.bench.measure, "_ask", ask)
    arguments = ("--prompts", asked_file, "--tree", "3,2,1", "--max-new-tokens", "9")
    assert bench(engine, *arguments, "--report", tmp_path / "x.html") == 130
    out, err = capfd.readouterr()
    assert err == "resps-bench: interrupted\n"
    assert "INTERRUPTED" in out
    assert "2 turns of 1 sets" in out
    assert "INTERRUPTED" in (tmp_path / "x.html").read_text()
    count = 5
    assert bench(engine, *arguments) == 130
    assert capfd.readouterr() == ("", "resps-bench: interrupted\n")


def test_bad_usage_is_one_line(engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text("{}")
    (tmp_path / "long.txt").write_text("the cat " * 400)
    (tmp_path / "x.json").write_text("{}")
    cases: list[tuple[Sequence[str | Path], int, str]] = [
        (["--policies", "best"], 2, "unknown policy 'best' — choose from none, fixed"),
        (["--policies", ""], 2, "unknown policy ''"),
        (["--policies", "none,cost-model"], 3, "resps-tune"),
        (["--tree", "big"], 2, "NODES,DEPTH,WIDTH"),
        (["--tree", "65,8,8"], 2, "larger than the engine allows"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--questions", "0"], 2, "questions"),
        (["--prompts", tmp_path / "nowhere"], 2, "nowhere"),
        (["--prompts", tmp_path / "bad.jsonl"], 2, "line 1"),
        (["--prompts", tmp_path / "long.txt"], 2, "none of the 1 questions can be asked: the prompt has"),
        (["--report", tmp_path / "nowhere" / "x.html"], 2, "there is no folder"),
        (["--from", tmp_path / "x.json"], 2, "--engine-dir"),
    ]
    for arguments, code, says in cases:
        assert bench(engine, *arguments) == code, arguments
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), arguments
        assert says in err, arguments
    assert bench(tmp_path / "nothing") == 3
    assert "resps-export" in capfd.readouterr().err


def test_report_that_cannot_be_written_costs_no_figures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(to_json(*both(drawn(0, questions=2))))
    assert run_command(command, "resps-bench", ["--from", str(tmp_path / "x.json"), "--report", "/dev/full"]) == 1
    out, err = capfd.readouterr()
    assert "## Speed" in out
    assert "No space left" in err


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    measurement, table = both(drawn(0, questions=2))
    data = json.loads(to_json(measurement, table))
    change(data)
    return json.dumps(data)


BROKEN: Mapping[str, Callable[[], str]] = {
    "cannot read": lambda: "{",
    "no measurement of schema": lambda: "[]",
    "of schema 1": lambda: edited(lambda data: data.update(schema=2)),
    "wrong keys: machine": lambda: edited(lambda data: data.pop("machine")),
    "tokens_per_cycle": lambda: edited(lambda data: data["answers"][0]["stats"].update(tokens_per_cycle="fast")),
    "not every arm answered": lambda: edited(lambda data: data["answers"].pop()),
    "several lengths": lambda: edited(lambda data: data["answers"][0]["rounds"]["waits"].append(1.0)),
    "every turn": lambda: edited(lambda data: data["answers"].clear()),
}


@pytest.mark.parametrize("says", BROKEN)
def test_broken_measurements_are_refused(tmp_path: Path, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(BROKEN[says]())
    assert run_command(command, "resps-bench", ["--from", str(tmp_path / "x.json")]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_without_matplotlib_it_says_so_before_it_measures(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr("runtime.bench.svg.find_spec", lambda name: None if name == "matplotlib" else original(name))
    monkeypatch.setattr(Decoder, "__init__", lambda *_, **__: pytest.fail("loaded the engine"))
    assert bench(engine, "--report", tmp_path / "x.html") == 2
    assert capfd.readouterr() == ("", "resps-bench: a report needs matplotlib — pip install 'resps[bench]'\n")


def test_tuned_arms_are_defaults_of_the_command(engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tuned = tmp_path / "engine"
    shutil.copytree(engine, tuned)
    install(tuned, load_manifest(tuned), Tuned(a_tuning(engine=load_manifest(tuned).engine_id, threads=1), {}, {}, ()))
    assert bench(tuned, "--prompts", asked_file, "--max-new-tokens", "12") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")][:5] == [
        "arm", "none", "5,3,2", "fixed (6,2,3)", "cost-model",
    ]  # fmt: skip
    assert out.startswith("lossless")
