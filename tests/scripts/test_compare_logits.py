"""scripts/lab/compare_logits.py: its figures equal those computed token by token; files and engines that it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime import Decoder
from runtime.console import run_command
from scripts.lab.compare_logits import main
from tests.support.eagle_engines import export

LINES = [{"prompt": "the cat", "answer": "sat on the mat and on the log, " * 3}, {"prompt": "a dog", "answer": "the cat"}]


@pytest.fixture(scope="module")
def int8(echo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in another precision, and with small trees only."""
    sources, more = echo_engine.parent, ("--precision", "int8", "--tree-sizes", "1,8", "--max-context", "250")
    return export(sources / "target", sources / "draft", tmp_path_factory.mktemp("int8"), *more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path / "answers.jsonl"


def token_by_token(decoder: Decoder, line: dict[str, str], max_tokens: int) -> Iterator[np.ndarray]:
    """The distribution before each token of the answer."""
    prompt = decoder.encode([{"role": "user", "content": line["prompt"]}])
    answer = decoder.tokenizer.encode_raw(line["answer"])
    for count in range(len(answer[: max(0, max_tokens - len(prompt))])):
        decoder.forget()
        decoder.models.target.cache.truncate(0)
        for _, output in decoder.models.target.prefill([*prompt, *answer[:count]]):
            logits = output.logits[0].astype(np.float64)
        weights = np.exp(logits - logits.max())
        yield weights / weights.sum()


@pytest.mark.parametrize("max_tokens", [420, 100])
def test_figures_equal_those_of_single_tokens(
    echo_engine: Path, int8: Path, file: Path, capfd: pytest.CaptureFixture[str], max_tokens: int
) -> None:
    arguments = [
        "--engine-dir",
        str(echo_engine),
        "--engine-dir",
        str(int8),
        "--engine-dir",
        str(echo_engine),
        "--most-tokens",
        str(max_tokens),
    ]
    assert run_command(main, "compare_logits", [*arguments, "--json", str(file)]) == 0
    printed = json.loads(capfd.readouterr().out)
    other, same = printed["engines"]
    with Decoder(echo_engine, draft="none") as true, Decoder(int8, draft="none") as rounded:
        pairs = [
            pair
            for line in LINES
            for pair in zip(token_by_token(true, line, max_tokens), token_by_token(rounded, line, max_tokens), strict=True)
        ]
    assert printed["reference"] == str(echo_engine)
    assert other["engine_dir"] == str(int8)
    assert other["positions"] == same["positions"] == len(pairs) > 20
    assert other["mean_kl"] == pytest.approx(np.mean([(p * np.log(p / q)).sum() for p, q in pairs]), rel=1e-3)
    assert other["mean_kl"] > 1e-5
    assert other["agreement"] == np.mean([p.argmax() == q.argmax() for p, q in pairs])
    assert (same["mean_kl"], same["agreement"]) == (0.0, 1.0)


def test_table(echo_engine: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engine-dir", str(echo_engine), "--engine-dir", str(echo_engine), "--answers", "1", str(file)]
    assert run_command(main, "compare_logits", arguments) == 0
    assert f"| {echo_engine} | 0.00000 | 1.0000 |" in capfd.readouterr().out


def test_impossible_comparisons_are_one_line_errors(
    echo_engine: Path, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "the cat " * 200, "answer": "sat"}))
    twice = ["--engine-dir", str(echo_engine)] * 2
    cases = [
        (["--engine-dir", str(echo_engine), str(file)], "a comparison needs two engines"),
        ([*twice, str(tmp_path / "bad.jsonl")], "line 1 has no prompt and answer"),
        ([*twice, str(tmp_path / "long.jsonl")], "has no answer within 250 tokens"),
    ]
    for arguments, message in cases:
        capfd.readouterr()
        assert run_command(main, "compare_logits", arguments) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert message in err
