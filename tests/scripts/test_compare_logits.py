"""scripts/lab/compare_logits.py: the same figures as computed token by token, and what cannot be compared."""

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


def one_by_one(decoder: Decoder, line: dict[str, str], most: int) -> Iterator[np.ndarray]:
    """The distribution before each token of the answer."""
    prompt = decoder.encode([{"role": "user", "content": line["prompt"]}])
    answer = decoder._tokenizer.encode_raw(line["answer"])
    for count in range(len(answer[: max(0, most - len(prompt))])):
        decoder.forget()
        decoder.models.target.cache.truncate(0)
        for _, scores in decoder.models.target.prefill([*prompt, *answer[:count]]):
            logits = scores.logits[0].astype(np.float64)
        weights = np.exp(logits - logits.max())
        yield weights / weights.sum()


@pytest.mark.parametrize("most", [420, 100])
def test_figures_are_those_of_single_tokens(
    echo_engine: Path, int8: Path, file: Path, capfd: pytest.CaptureFixture[str], most: int
) -> None:
    given = ["--engine-dir", str(echo_engine), "--engine-dir", str(int8), "--engine-dir", str(echo_engine), "--most-tokens", str(most)]
    assert run_command(main, "compare_logits", [*given, "--json", str(file)]) == 0
    shown = json.loads(capfd.readouterr().out)
    other, same = shown["engines"]
    with Decoder(echo_engine, draft="none") as true, Decoder(int8, draft="none") as rounded:
        pairs = [pair for line in LINES for pair in zip(one_by_one(true, line, most), one_by_one(rounded, line, most), strict=True)]
    assert shown["reference"] == str(echo_engine)
    assert other["engine_dir"] == str(int8)
    assert other["positions"] == same["positions"] == len(pairs) > 20
    assert other["mean_kl"] == pytest.approx(np.mean([(p * np.log(p / q)).sum() for p, q in pairs]), rel=1e-3)
    assert other["mean_kl"] > 1e-5
    assert other["agreement"] == np.mean([p.argmax() == q.argmax() for p, q in pairs])
    assert (same["mean_kl"], same["agreement"]) == (0.0, 1.0)


def test_the_table(echo_engine: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--engine-dir", str(echo_engine), "--engine-dir", str(echo_engine), "--answers", "1", str(file)]
    assert run_command(main, "compare_logits", given) == 0
    assert f"| {echo_engine} | 0.00000 | 1.0000 |" in capfd.readouterr().out


def test_what_cannot_be_compared_is_one_line(echo_engine: Path, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "the cat " * 200, "answer": "sat"}))
    twice = ["--engine-dir", str(echo_engine)] * 2
    cases = [
        (["--engine-dir", str(echo_engine), str(file)], "is compared with nothing"),
        ([*twice, str(tmp_path / "bad.jsonl")], "line 1 has no prompt and answer"),
        ([*twice, str(tmp_path / "long.jsonl")], "has no answer within 250 tokens"),
    ]
    for given, says in cases:
        capfd.readouterr()
        assert run_command(main, "compare_logits", given) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert says in err
