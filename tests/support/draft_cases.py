"""A tiny target with a draft to be written beside it, and runs of resps-export on both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.fetch import open_checkpoint
from export.cli import command
from runtime.console import run_command
from tests.support.ended import Ended
from tests.support.tiny import VOCAB
from tests.support.tiny_drafts import DRAFT_VOCAB, TinyDraft, write_draft

EVEN = torch.arange(0, 2 * DRAFT_VOCAB, 2)  # a d2t that can be read as ids and as offsets (then every third token)


@dataclass(frozen=True)
class DraftCase:
    """Paths of a test's target, draft and engines; ``model`` is the target in transformers."""

    target: Path
    model: Any
    draft: Path
    engines: Path
    capfd: pytest.CaptureFixture[str]

    def write(self, family: str = "specforge", **switches: Any) -> TinyDraft:
        return write_draft(self.draft, family, self.model, **switches)

    def tokens(self) -> list[int]:
        """The draft's vocabulary as the exporter reads it: the target's id of each draft token."""
        return list(open_draft(self.draft, open_checkpoint(self.target)).tokens)

    def run(self, *arguments: str, draft: bool = True) -> Ended:
        """resps-export on the target and the draft, in this process. Later arguments override the given ones."""
        self.capfd.readouterr()
        base = ["--weights", str(self.target), "--out", str(self.engines), "--max-context", "64"]
        base += ["--draft-weights", str(self.draft)] if draft else []
        code = run_command(command, "resps-export", [*base, *arguments])
        return Ended(code, *self.capfd.readouterr())

    def expect_refused(self, ended: Ended, message: str) -> None:
        """The run failed with one line and exit code 1, and left nothing behind."""
        assert ended.code == 1, ended
        assert message in ended.complaint
        assert not self.engines.exists() or not list(self.engines.iterdir())


def t2d_of(tokens: torch.Tensor, size: int = VOCAB) -> torch.Tensor:
    """A t2d: one bool for each target token, True if the draft has it."""
    return torch.zeros(size, dtype=torch.bool).index_fill(0, tokens, True)
