"""Re-SpS' text state: what it is shown, and training by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.tuning.learning.learn import RESPS, learn_resps
from export.tuning.learning.ppo import Lesson, TrainingLimits
from export.tuning.learning.trained import Trained
from export.tuning.replay.grid import TreeGrid
from export.tuning.replay.record import record
from export.tuning.replay.simulation import replay
from export.tuning.replay.traces import Trace
from export.tuning.texts import Texts, places_of, replay_paid
from policy import PLAIN, FixedPolicy, Observation, Outcome, Resps, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.text.detokenizer import Detokenizer
from tests.support.eagle_engines import prompt_of
from tests.support.tunings import SURFACE, net

ACTIONS = ((1, 0, 0), (3, 2, 1), (7, 6, 1))


def test_resps_sees_the_text_and_only_when_it_asks() -> None:
    read: list[str] = []

    def encode(text: str) -> np.ndarray:
        read.append(text)
        return np.array([text.count("yes"), text.count("no"), 0.5], np.float32)

    def features() -> np.ndarray:
        raise AssertionError("features cost a copy")

    policy = Resps(lambda x: x, ACTIONS, state="text", encode=encode)
    assert policy.choose(Observation(9, 9, features, lambda: "yes, no, no, no")) == TreeSpec(3, 2, 1)
    policy.begin()
    assert policy.choose(Observation(9, 9, features, lambda: "yes")) == PLAIN
    assert read == ["yes, no, no, no", "yes"]
    with pytest.raises(ValueError, match="no text to look at"):
        policy.choose(Observation(9, 9, features))
    with pytest.raises(ValueError, match="text needs an encoder"):
        Resps(lambda x: x, ACTIONS, state="text")
    with pytest.raises(ValueError, match="features, average, text, not 'smell'"):
        Resps(lambda x: x, ACTIONS, state="smell")


class Reader:
    """Another tree every round; notes the text before each."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def begin(self) -> None:
        """Goes on."""

    def choose(self, observation: Observation) -> TreeSpec:
        self.read.append(observation.text)
        return TreeSpec(*((5, 3, 2), (1, 0, 0), (4, 3, 1))[len(self.read) % 3])

    def observe(self, outcome: Outcome) -> None:
        """Learns nothing."""


def test_the_text_is_prompt_and_answer_so_far(eagle_decoder: Decoder) -> None:
    reader, prompt, tokens = Reader(), prompt_of(20), []
    expected = []
    with eagle_decoder.stream(prompt, SamplingParams(max_new_tokens=40), policy=reader) as stream:
        for chunk in stream:
            tokens += chunk.tokens
            expected.append(eagle_decoder.decode([*prompt, *tokens]))
    assert len(reader.read) > 10
    assert reader.read == expected[: len(reader.read)]
    assert len(expected) - len(reader.read) in (1, 2)  # the last round's, and what was held back


def test_nothing_is_decoded_for_policies_that_do_not_read(eagle_decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> str:
        raise AssertionError("decoded")

    monkeypatch.setattr(Detokenizer, "after", never)
    assert len(eagle_decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=10), policy=FixedPolicy(TreeSpec(5, 3, 2))).tokens) == 10
    with pytest.raises(AssertionError, match="decoded"):
        eagle_decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=10), policy=Reader())


# Training


def toy_answers(count: int = 4, length: int = 60) -> list[Mapping[int, Trace]]:
    """Chains that are right throughout in every second answer and wrong in the others. Only the text says which, features are all alike."""
    answers: list[Mapping[int, Trace]] = []
    for index in range(count):
        easy = index % 2 == 0
        right = np.tile(np.arange(6, dtype=np.int16) if easy else np.full(6, -1, np.int16), (length, 1))
        scores, features = np.tile(np.arange(1, 7, dtype=np.float32) * -1.0, (length, 1)), np.ones((length, 4), np.float16)
        tokens = np.full(20 + length + 1, int(easy))
        answers.append({1: Trace(str(index), 20, 1, scores, np.arange(1, 7, dtype=np.int8), right, features, tokens, decode=str)})
    return answers


def by_sign(text: str) -> np.ndarray:
    return np.array([1, -1] if "1" in text else [-1, 1], np.float32)


def toy_texts(encode: Callable[[str], np.ndarray] = by_sign) -> Texts:
    return Texts(encode, None)  # type: ignore[arg-type]


def test_resps_learns_what_only_the_text_tells() -> None:
    lesson, texts = Lesson(toy_answers(), toy_answers(2), SURFACE, rate=0.15), toy_texts()
    limits = TrainingLimits(1500, 20, seed=1, policy_ms=1.0)
    settings = dataclasses.replace(RESPS, learning_rate=2e-3)
    learned = learn_resps(lesson, ACTIONS, limits, settings, state="text", encode=texts)
    blind = max(replay(FixedPolicy(TreeSpec(*action)), toy_answers(2), SURFACE).rate for action in ACTIONS)  # features say nothing
    policy = Resps(learned.net, ACTIONS, state="text", encode=texts)
    easy, hard = (Observation(30, 30, lambda: np.ones(4), lambda text=text: text) for text in ("1, 1", "0, 0"))  # type: ignore[misc]
    assert policy.choose(easy) == TreeSpec(7, 6, 1)
    policy.begin()
    assert policy.choose(hard) == PLAIN
    assert learned.rate > 1.05 * blind
    assert len(texts._known) <= 6 * 60  # the text at each place was read once, ...
    assert texts.calls > 2 * len(texts._known)  # ... and asked for often


def test_reading_is_charged_whether_remembered_or_not() -> None:
    answers, texts = toy_answers(2), toy_texts()
    policy = Trained(slow=net(2, 3), actions=ACTIONS, state="text", texts=texts).policy()
    free = replay(policy, answers, SURFACE)
    texts._seconds = [0.007, 0.005, 0.9]
    assert texts.milliseconds == pytest.approx(7)
    for _ in range(2):
        paid = replay_paid(policy, texts, answers, SURFACE)
        calls = sum(-(-cycles // 30) for cycles in _cycles(policy, answers))
        assert paid.tokens == free.tokens
        assert paid.milliseconds == pytest.approx(free.milliseconds + 7 * calls)
    assert replay_paid(FixedPolicy(PLAIN), None, answers, SURFACE).milliseconds == replay(FixedPolicy(PLAIN), answers, SURFACE).milliseconds


def _cycles(policy: Any, answers: Sequence[Mapping[int, Trace]]) -> list[int]:
    return [replay(policy, [answer], SURFACE).cycles for answer in answers]


def test_reading_ahead_ends_in_time_and_visits_every_answer() -> None:
    answers = toy_answers(4)
    some = places_of(answers, seed=0)
    assert sorted(some) == sorted(str([flag] * (21 + place)) for flag in (1, 0, 1, 0) for place in range(60))
    assert len({text[1] for text in some[:20]}) == 2
    shares: list[float] = []
    texts = toy_texts()
    texts.prepare(some, 60, shares.append)
    assert (len(texts._known), texts.calls) == (120, 0)
    assert shares == sorted(shares)
    late = toy_texts()
    late.prepare(some, 1e-9, shares.append)
    assert not late._known


def test_by_the_clock_nothing_is_remembered() -> None:
    texts = toy_texts()
    trained = Trained(slow=net(2, 3), actions=ACTIONS, state="text", texts=texts)
    trained.policy(by_clock=True).choose(Observation(1, 9, lambda: np.ones(4), lambda: "1"))
    assert (texts.calls, len(texts._known)) == (0, 0)
    trained.policy().choose(Observation(1, 9, lambda: np.ones(4), lambda: "1"))
    assert (texts.calls, len(texts._known)) == (1, 1)


def test_records_without_text_get_it_and_keep_the_rest(eagle_decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = TreeGrid(widths=(1, 2), depths=(1, 2, 3), nodes=6, new_tokens=12)

    def recorded(texts: bool) -> list[dict[int, Trace]]:
        return record(eagle_decoder, ["the cat sat", "a dog"], grid, tmp_path, float("inf"), lambda *_: None, least=1, texts=texts)

    first = recorded(False)
    for file in tmp_path.glob("*.npz"):  # as earlier versions wrote them
        with np.load(file) as found:
            np.savez(file, **{name: found[name] for name in found.files if name != "tokens"})
    old = recorded(False)[0][2]
    with pytest.raises(ValueError, match="holds no text"):
        old.text(0)
    monkeypatch.setattr("export.tuning.replay.record.trace", None)  # drafting again would take ten times as long
    for again in (recorded(True), recorded(True)):
        for answer, before in zip(again, first, strict=True):
            assert answer[1].tokens.tolist() == before[1].tokens.tolist()
            assert answer[2].scores.tolist() == before[2].scores.tolist()
            assert answer[2].text(3) == before[2].text(3) == eagle_decoder.decode(before[2].tokens[: before[2].prompt + 4].tolist())
