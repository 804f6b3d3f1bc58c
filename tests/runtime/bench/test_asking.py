"""resps-bench: what is asked of whom and when."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policy import PLAIN, FixedPolicy, TreeSpec, Watchdog
from runtime import Chunk, Decoder, PromptError, SamplingParams, Stats
from runtime.bench.contenders import Contender, make_arms
from runtime.bench.figures import tabulate
from runtime.bench.measure import measure, warm_up
from runtime.bench.questions import OWN, Question, read_questions
from runtime.bench.record import BASELINE, BenchSettings, ContenderRecord, Skipped, TurnRecord
from runtime.bench.tables import verdicts
from runtime.errors import BenchError, EngineDirError
from runtime.manifest.load import load_manifest
from runtime.manifest.tuning import Tuning
from tests.support.bench_answers import SETTINGS, a_measurement, a_tuning, both
from tests.support.tunings import SURFACE

TREE, SMALL = TreeSpec(7, 4, 2), TreeSpec(3, 2, 1)
ARMS = [
    Contender(BASELINE, FixedPolicy(PLAIN)),
    Contender("7,4,2", FixedPolicy(TREE)),
    Contender("small", FixedPolicy(SMALL)),
]


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

    def stream(self, prompt: Sequence[int], params: SamplingParams, *, policy: Any) -> FakeStream:
        self.asked.append((bytes(prompt).decode(), str(policy.spec), params.seed))
        tokens = [(sum(prompt) + (params.seed or 0) + place) % 50 for place in range(params.max_new_tokens or 0)]
        return FakeStream([*tokens[:-1], 99] if self._wrong(policy) else tokens, policy.spec)

    def generate(self, prompt: str, params: SamplingParams, *, policy: Any) -> None:
        self.warmed.append(policy.spec)

    def forget(self) -> None:
        """Keeps nothing."""


def asked(
    decoder: FakeDecoder, questions: Sequence[Question], settings: BenchSettings = SETTINGS
) -> list[tuple[TurnRecord, ...] | Skipped]:
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
    watched = Watchdog(FixedPolicy(TREE), SMALL, SURFACE)
    warm_up(decoder, [*ARMS[:1], Contender("watched", watched)])  # type: ignore[arg-type]
    assert decoder.warmed == [PLAIN, SMALL, TREE]
    assert watched == Watchdog(FixedPolicy(TREE), SMALL, SURFACE)


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


def arms_of(
    engine: Path, *names: str, trees: Sequence[TreeSpec] = (), draft: str = "eagle", tuning: Tuning | None = None
) -> list[Contender]:
    """Of a copy of the engine with that tuning."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(engine, Path(folder) / "engine"))
        manifest = load_manifest(copy)
        if tuning:
            tuning = dataclasses.replace(tuning, engine=manifest.engine_id)
        (copy / "manifest.json").write_text(dataclasses.replace(manifest, tuning=tuning).to_json())
        with Decoder(copy, draft=draft, threads=2, policy="none") as decoder:
            return make_arms(names, trees, decoder)


def names(arms: Sequence[Contender]) -> list[str]:
    return [arm.name for arm in arms]


def test_default_arms_are_what_there_is(echo_engine: Path) -> None:
    assert names(arms_of(echo_engine)) == [BASELINE, "5,3,2"]
    assert names(arms_of(echo_engine, draft="none")) == [BASELINE]
    assert names(arms_of(echo_engine, draft="ngram", tuning=a_tuning())) == [BASELINE, "6,5,2"]
    tuned = arms_of(echo_engine, tuning=a_tuning())
    assert names(tuned) == [BASELINE, "5,3,2", "fixed", "cost-model"]
    assert [arm.recorded.tree for arm in tuned] == ["1,0,0", "5,3,2", "6,2,3", None]
    assert names(arms_of(echo_engine, tuning=a_tuning(static=(5, 3, 2)))) == [BASELINE, "5,3,2", "cost-model"]


def test_named_arms_come_after_the_baseline_once_each(echo_engine: Path) -> None:
    found = arms_of(echo_engine, "fixed", "none", "fixed", trees=[PLAIN, TREE, TREE], tuning=a_tuning())
    assert names(found) == [BASELINE, "fixed", "1,0,0", "7,4,2"]
    assert found[1].trees == [TreeSpec(6, 2, 3)]


def test_tuning_of_another_machine_is_refused_and_said_once(echo_engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert names(arms_of(echo_engine, tuning=a_tuning(machine="another"))) == [BASELINE, "5,3,2"]
    assert caplog.text.count("the policy was tuned on") == 1
    with pytest.raises(EngineDirError, match="cost-model has not been tuned"):
        arms_of(echo_engine, "cost-model", tuning=a_tuning(machine="another"))


@pytest.mark.parametrize("tree", [TreeSpec(65, 8, 8), TreeSpec(5, 17, 2), TreeSpec(5, 1, 17)], ids=str)
def test_trees_that_would_be_cut_are_refused(echo_engine: Path, tree: TreeSpec) -> None:
    with pytest.raises(BenchError, match="larger than the engine allows"):
        arms_of(echo_engine, trees=[tree])


def test_a_guard_that_gave_up_is_recorded() -> None:
    watched = Watchdog(FixedPolicy(TREE), SMALL, SURFACE)
    assert Contender("x", watched).recorded == ContenderRecord("x", None, None)
    watched.fallback_reason = "slow"
    assert Contender("x", watched).recorded.given_up == "slow"
