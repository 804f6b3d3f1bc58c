"""scripts/bench_hopeless.py: its figures are those of the answers, and it says so when they differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from policy import PLAIN, FixedPolicy
from runtime import Decoder, SamplingParams, Stats
from runtime.console import run_command
from scripts.bench_hopeless import REQUESTS, ask, line, main, random_ids


def an_answer(tokens: int, cycles: int, seconds: float) -> Stats:
    decoded = tokens - 1
    rates = (decoded / cycles, decoded / seconds) if cycles else (0.0, 0.0)
    return Stats(10, tokens, cycles, 2 * cycles, decoded - cycles, *rates, 0.5, seconds, 0.1, 0.2)


def test_figures_of_a_small_example() -> None:
    plain = [an_answer(11, 10, 1.0), an_answer(31, 30, 3.0)]
    ours = [an_answer(11, 5, 0.5), an_answer(31, 10, 0.75)]
    found = list(zip(plain, ours, strict=True))
    expected = "x: median 3.00x, least 2.00x, of sums 3.20x, 2.50 tokens a cycle, 2 answers"
    assert line("x", found) == expected
    assert line("x", [*found, (an_answer(1, 0, 0.0), an_answer(1, 0, 0.0))]) == expected
    assert line("x", []) == "x: no answer has a second token"


def test_both_answer_the_same_and_a_wrong_one_is_named(echo_engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Decoder(echo_engine, threads=1) as decoder:
        prompts = random_ids(decoder, 3, 20)
        assert [len(prompt) for prompt in prompts] == [20] * 3
        assert not {token for prompt in prompts for token in prompt} & set(decoder.manifest.tokens.stop)
        assert prompts == random_ids(decoder, 3, 20)
        capfd.readouterr()
        for plain, ours in ask(decoder, prompts, 24):
            assert plain.new_tokens == ours.new_tokens
            assert plain.cycles > ours.cycles
        assert capfd.readouterr().out == ""
        generate = decoder.generate
        decoder.generate = lambda prompt, **wishes: (  # type: ignore[method-assign]
            generate(prompt, **wishes)
            if wishes["policy"]
            else dataclasses.replace(generate(prompt, SamplingParams(max_new_tokens=5), policy=FixedPolicy(PLAIN)), tokens=(1,))
        )
        ask(decoder, prompts[:1], 24)
        assert capfd.readouterr().out == "NOT LOSSLESS: the answers to prompt 0 differ\n"


def test_a_line_for_each_kind_of_text(echo_engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    arguments = ["--engine-dir", str(echo_engine), "--prompts", "2", "--length", "12", "--max-new-tokens", "9", "--threads", "1"]
    assert run_command(main, "bench_hopeless", arguments) == 0
    out, err = capfd.readouterr()
    assert [text.split(":")[0] for text in out.splitlines()] == ["random ids", "other languages"]
    assert out.splitlines()[1].endswith(f" {len(REQUESTS)} answers")
    assert err == ""
