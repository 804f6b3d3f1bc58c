"""States that were computed before are read, and the file never grows beyond its limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training.states import States, state_bytes
from export.training.target import StepOutput, TorchTarget
from export.training.words.corpus import Conversation
from tests.support.training import CPU


def conversations(target: HuggingFaceCheckpoint, lengths: Sequence[int]) -> list[Conversation]:
    numbers = np.random.default_rng(0)
    return [Conversation(numbers.integers(0, target.arch.vocab, n, np.int32), np.zeros(n, np.uint8), "chat") for n in lengths]


def padded(group: Sequence[Conversation]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(each.tokens).long() for each in group], batch_first=True)


@pytest.mark.parametrize("rows", [0, 40, 100])
def test_what_was_computed_is_read_and_the_rest_computed_again(
    tmp_path: Path, target: HuggingFaceCheckpoint, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = list[int]()
    whole = TorchTarget.whole

    def counted(self: TorchTarget, tokens: Tensor) -> StepOutput:
        passes.append(len(tokens))
        return whole(self, tokens)

    monkeypatch.setattr(TorchTarget, "whole", counted)
    torch_target = TorchTarget(target, 0, 32, CPU, torch.float32)
    states = States(torch_target, tmp_path / "states", rows * state_bytes(target.arch.hidden))
    assert list(tmp_path.iterdir()) == []  # nothing is left if the process is killed
    first, second, third = conversations(target, [30, 10, 20])
    groups = [[first, second], [third], [second, first], [third], [second, third]]
    for group in groups:
        found, expected = states(group, padded(group)), whole(torch_target, padded(group))
        for row, each in enumerate(group):
            for actual, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(actual[row, : len(each)], wanted[row, : len(each)], rtol=1e-2, atol=1e-2)  # kept in bfloat16
    assert passes == {0: [2, 1, 2, 1, 2], 40: [2, 1, 1, 2], 100: [2, 1]}[rows]
