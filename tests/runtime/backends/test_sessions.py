"""ONNX Runtime's sessions on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import Decoder, SamplingParams
from runtime.backends.cpu.onnxruntime import open_session
from tests.support.exporting import Run


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_all_threads_pack_integers_as_one_does(run: Run, engines: Path, precision: str) -> None:
    assert run("--precision", precision, "--name", "tiny").code == 0
    options = open_session(engines / "tiny" / "target.onnx", threads=2, huge_pages=False).get_session_options()
    assert options.get_session_config_entry("session.prepack.enable_parallel") == "1"
    answers = []
    for threads in (1, 2):
        with Decoder(engines / "tiny", threads=threads) as decoder:
            answers.append(decoder.generate("the cat", SamplingParams(max_new_tokens=20, logprobs=1)))
    one, two = answers
    assert two.tokens == one.tokens
    assert one.logprobs is not None
    assert two.logprobs is not None
    assert [each.logprob for each in two.logprobs] == pytest.approx([each.logprob for each in one.logprobs], abs=1e-6)
