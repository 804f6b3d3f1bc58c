"""The doctor names every planted fault of the demo model's draft, and finds nothing in healthy pairs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from export.checkpoints.draft_checkpoint import open_draft
from export.doctor.diagnosis import diagnose
from export.doctor.evidence import Answer, collect
from export.doctor.pair import Pair, open_pair
from export.doctor.replay import HeldTarget, Reading, held_draft, interval, replay
from export.doctor.streams import Streams, target_streams
from export.doctor.template import FAMILIES, other_template
from runtime import Decoder
from runtime.bench.cli import SICK, command
from runtime.bench.questions import read_questions
from runtime.console import run_command
from runtime.manifest.schema import Tokens
from runtime.text.template import ChatTemplate
from runtime.text.tokenizer import Tokenizer
from tests.support.doctor_faults import FAULTS, plant
from tests.support.doctor_pairs import LLAMA_2

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Examined:
    """The healthy pair, and what its engine did."""

    pair: Pair
    answers: list[Answer]
    streams: Streams

    def says(self, pair: Pair | None = None, answers: list[Answer] | None = None) -> list[str]:
        """The findings, with the streams that were computed once."""

        def compute(wanted: Collection[int]) -> Streams:
            return self.streams

        found = diagnose((pair or self.pair).draft, answers or self.answers, compute)
        return [str(finding) for finding in found]


@pytest.fixture(scope="module")
def healthy(demo_engine: Callable[[str], Path]) -> Examined:
    with Decoder(demo_engine("fp32"), policy="fixed", draft="eagle") as decoder:
        pair = open_pair(decoder.manifest, None, None)
        pair = replace(pair, target=HeldTarget(pair.target))
        chats = [[{"role": "user", "content": question.turns[0]}] for question in read_questions([], 5)]
        answers = collect(decoder, [decoder.encode(chat) for chat in chats], 48, lambda *_: None)
    wanted = {2, 3, 15, 16, 27, 28, 1, 14, 26, 4, 17, 29}
    return Examined(pair, answers, target_streams(pair.target, [answer.tokens for answer in answers], wanted, lambda *_: None))


def test_the_replay_guesses_what_the_engine_guessed(healthy: Examined) -> None:
    """The engine's draft is int8, the replay float32."""
    guesses = np.concatenate([answer.guesses[: len(answer.labels(1)), 0] for answer in healthy.answers])
    replayed = replay(Reading(held_draft(healthy.pair.draft), tuple(healthy.answers)), 1)
    assert (replayed.guesses == guesses).mean() > 0.9


def test_the_target_computed_again_prefers_what_the_engine_wrote(healthy: Examined) -> None:
    for answer, choices in zip(healthy.answers, healthy.streams.choices, strict=True):
        assert (choices[answer.first : -1] == answer.choices[answer.first : -1]).mean() > 0.95


def test_nothing_is_found_in_a_healthy_pair(healthy: Examined) -> None:
    assert healthy.says() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(healthy: Examined, tmp_path: Path, fault: str) -> None:
    draft = open_draft(plant(healthy.pair.draft.path, tmp_path / "draft", FAULTS[fault]), healthy.pair.target)
    answers = healthy.answers
    if draft.arch.captured != healthy.pair.draft.arch.captured:
        features = healthy.streams.features(draft.arch.captured)
        answers = [replace(answer, features=each) for answer, each in zip(answers, features, strict=True)]
    found = healthy.says(replace(healthy.pair, draft=draft), answers)
    assert fault in found[0]
    assert " — " in found[0]


def test_a_target_that_was_rounded_too_much_is_named(healthy: Examined) -> None:
    noise = np.random.default_rng(0)
    blurred = [
        replace(answer, features=answer.features + noise.normal(0, answer.features.std(axis=0), answer.features.shape).astype(np.float32))
        for answer in healthy.answers
    ]
    assert "the draft was trained for the unquantized target" in healthy.says(answers=blurred)[0]


def test_an_engine_that_drafts_otherwise_is_named(healthy: Examined) -> None:
    other = replay(Reading(held_draft(healthy.pair.draft), tuple(healthy.answers)).with_arch(norm_before_residual=True), 1)
    answers = [
        replace(answer, guesses=np.repeat(other.guesses[other.answers == index, None], 3, 1))
        for index, answer in enumerate(healthy.answers)
    ]
    assert "the engine does not draft as the checkpoint says, but with norm_before_residual true" in healthy.says(answers=answers)[0]


def test_the_command_finds_nothing_in_int8_with_other_prompts(
    demo_engine: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["--prompts", str(ROOT / "export" / "prompts.txt"), "--questions", "4", "--max-new-tokens", "40"]
    assert run_command(command, "resps-bench", ["--doctor", "--engine-dir", str(demo_engine("int8")), *asked]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "nothing found"
    assert SICK == 5


CHATML = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}<|im_start|>"
R1 = "{{ bos_token }}{% for m in messages %}<｜User｜>{{ m['content'] }}{% endfor %}<｜Assistant｜>"


@pytest.mark.parametrize(
    ("served", "own", "says"),
    [
        (CHATML, CHATML, None),
        (CHATML, "", None),
        (LLAMA_2, CHATML, "not the checkpoint's own"),
        (LLAMA_2, LLAMA_2, "never writes <|im_start|>"),
        ("", "", "there is no chat template, and the tokenizer has <|im_start|>"),
        (CHATML.removesuffix("<|im_start|>"), "", "does not open the answer with <|im_start|>"),
        (R1, R1, None),  # trained on from a model that had the other marks, whose tokens are still there
        ("{{ raise_exception('no chat') }}<|im_start|>", "", None),
    ],
)
def test_a_template_of_another_family_is_named(tmp_path: Path, served: str, own: str, says: str | None) -> None:
    """The token that begins ChatML's turns is this model's bos_token too."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.add_special_tokens(["<|im_start|>"])
    bpe.add_tokens(["<｜User｜>", "<｜Assistant｜>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat.jinja").write_text(served, encoding="utf-8")
    special = {"bos_token": "<|im_start|>"}
    tokens = Tokens("tokenizer.json", {"default": "chat.jinja"} if served else {}, (), None, special)
    other = other_template(Tokenizer(tmp_path, tokens), {"default": own}, special.values())
    assert (other is None) == (says is None)
    if other and says:
        assert says in other.why


def test_templates_of_families_write_turns() -> None:
    chat = [{"role": "user", "content": "Hello"}]
    texts = [ChatTemplate(source).render(chat, {"bos_token": "<s>"}) for source in FAMILIES.values()]
    assert texts == [
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ]


def test_intervals_hold_the_mean_of_dependent_positions() -> None:
    """Neighbours in a block are the same here; an interval that counts them as independent would be far too narrow."""
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        values = np.repeat(random.random(40) < 0.3, 8).astype(float)
        low, high = interval(values, np.repeat(np.arange(5), 64))
        held += low <= 0.3 <= high
    assert held >= 190
