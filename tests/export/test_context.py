"""A context that the model limits: the export says so, and nobody is sent for a larger one in vain."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import Decoder, PromptError
from tests.support.exporting import Run
from tests.support.tiny import random_ids, write_checkpoint


@pytest.mark.parametrize(
    ("asked", "said", "advice"), [(64, True, "; this model has no longer context"), (16, False, " larger --max-context")]
)
def test_a_context_that_is_cut_is_said(tmp_path: Path, run: Run, asked: int, said: bool, advice: str) -> None:
    write_checkpoint(tmp_path / "source", "mistral", num_hidden_layers=1, sliding_window=32)
    arguments = ["--weights", str(tmp_path / "source"), "--out", str(tmp_path), "--name", "e", "--max-context", str(asked)]
    assert ("context 32 tokens, the model's own limit" in run(*arguments, "--dry-run").out) == said
    ended = run(*arguments)
    assert (ended.code, "the context is 32 tokens instead of 64, the most that the model" in ended.err) == (0, said)
    with Decoder(tmp_path / "e", threads=1) as decoder, pytest.raises(PromptError, match=f"— shorten it.*{advice}$"):
        decoder.generate(random_ids(40))
