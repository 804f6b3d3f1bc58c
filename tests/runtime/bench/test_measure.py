"""resps-bench: the requests, their order, and the records of their answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from policy import PLAIN, FixedPolicy, TreeSpec, Watchdog
from runtime import Chunk, PromptError, SamplingParams, Stats
from runtime.bench.contenders import Contender
from runtime.bench.figures import tabulate
from runtime.bench.measure import measure, warm_up
from runtime.bench.questions import Question
from runtime.bench.record import BASELINE, BenchSettings, Skipped, TurnRecord
from runtime.bench.tables import verdicts
from tests.support.bench_answers import SETTINGS, a_measurement, both
from tests.support.tunings import LATENCY

TREE, SMALL = TreeSpec(7, 4, 2), TreeSpec(3, 2, 1)


class FakeStream:
    """Delivers two tokens at a time, which depend on the prompt and the seed, not on the policy."""

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
    """Records all requests. Prompts with the word "long" do not fit."""

    def __init__(self, *, template: bool = True, wrong: Callable[[Any], bool] = lambda policy: False) -> None:
        self.manifest = SimpleNamespace(tokens=SimpleNamespace(chats=template))
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


def contenders(decoder: FakeDecoder) -> list[Contender]:
    policies = {BASELINE: FixedPolicy(PLAIN), "7,4,2": FixedPolicy(TREE), "small": FixedPolicy(SMALL)}
    return [Contender(name, policy, decoder) for name, policy in policies.items()]  # type: ignore[arg-type]


def asked(
    decoder: FakeDecoder, questions: Sequence[Question], settings: BenchSettings = SETTINGS
) -> list[tuple[TurnRecord, ...] | Skipped]:
    return list(measure(questions, contenders(decoder), settings, lambda done, total: None))


def test_contenders_rotate_and_all_answer_the_same_prompts() -> None:
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
    assert all(isinstance(each, tuple) and [answer.contender for answer in each] == [BASELINE, "7,4,2", "small"] for each in came)
    places = [(answer.set, answer.question, answer.turn) for each in came if isinstance(each, tuple) for answer in each[:1]]
    assert places == [("a", 0, 0), ("a", 0, 1), ("b", 0, 0), ("a", 1, 0)]
    assert verdicts(*both([answer for each in came if isinstance(each, tuple) for answer in each])).__next__().startswith("lossless")


def test_records_add_up() -> None:
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


def test_seeds_differ_by_turn_and_not_by_contender() -> None:
    decoder = FakeDecoder()
    settings = dataclasses.replace(SETTINGS, temperature=1.0, seed=2**64 - 1)
    asked(decoder, [Question("a", 0, ("one", "two")), Question("a", 1, ("three",))], settings)
    assert [seed for _, _, seed in decoder.asked] == [2**64 - 1] * 3 + [0] * 3 + [1] * 3


def test_a_contender_with_other_tokens_is_noticed() -> None:
    decoder = FakeDecoder(wrong=lambda policy: policy.spec == SMALL)
    came = asked(decoder, [Question("a", number, ("one", "two")) for number in range(2)])
    answers = [answer for each in came if isinstance(each, tuple) for answer in each]
    table = tabulate(a_measurement(answers))
    assert {each.contender: (each.differing_answers, each.differing_tokens) for each in table.pooled} == {
        BASELINE: (0, 0), "7,4,2": (0, 0), "small": (4, 4),
    }  # fmt: skip


def test_a_turn_that_does_not_fit_is_left_out_with_a_reason() -> None:
    came = asked(FakeDecoder(), [Question("a", 0, ("one", "long", "never asked")), Question("a", 1, ("two",))])
    assert came[1] == Skipped("a", 0, 1, "too many tokens")
    assert [len(each) for each in came if isinstance(each, tuple)] == [3, 3]


def test_without_a_template_turns_are_plain_text() -> None:
    decoder = FakeDecoder(template=False)
    asked(decoder, [Question("a", 0, ("one", "two"))])
    assert (decoder.asked[0][0], decoder.asked[3][0]) == ("one", "one\na" + "b" * 10 + "\ntwo")


def test_every_tree_is_warmed_up_on_its_decoder_and_no_policy_learns_from_it() -> None:
    decoder, other = FakeDecoder(), FakeDecoder()
    watched = Watchdog(FixedPolicy(TREE), SMALL, LATENCY)
    warm_up([*contenders(decoder)[:1], Contender("watched", watched, decoder), *contenders(other)[1:2]])  # type: ignore[arg-type]
    assert (decoder.warmed, other.warmed) == ([PLAIN, SMALL, TREE], [TREE])
    assert watched == Watchdog(FixedPolicy(TREE), SMALL, LATENCY)


def test_each_contender_is_asked_on_its_own_decoder() -> None:
    first, second = FakeDecoder(), FakeDecoder()
    both = [*contenders(first)[:2], *contenders(second)[2:]]
    (came,) = measure([Question("a", 0, ("one",))], both, SETTINGS, lambda done, total: None)
    assert isinstance(came, tuple)
    assert [answer.contender for answer in came] == [BASELINE, "7,4,2", "small"]
    assert ([tree for _, tree, _ in first.asked], [tree for _, tree, _ in second.asked]) == (["1,0,0", "7,4,2"], ["3,2,1"])
