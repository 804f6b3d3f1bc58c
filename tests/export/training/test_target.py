"""The target in torch equals transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from export.training.errors import TrainingError
from export.training.target import torch_device
from tests.support.tiny import ARCHITECTURES, VOCAB, tiny_model
from tests.support.training import expect_states, torch_target


@pytest.mark.parametrize("layers", [6, 8])  # with six, two of the captured layers are the same
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torch_target_equals_transformers_with_sequences_interleaved(tmp_path: Path, name: str, layers: int) -> None:
    choice = random.Random(layers)
    model = tiny_model(name, tied=layers == 6, num_hidden_layers=layers)
    target = torch_target(tmp_path, model, 3, 16)
    texts = [choice.choices(range(VOCAB), k=length) for length in (4, 16, 9)]
    states: list[list[tuple[Tensor, Tensor]]] = [[], [], []]
    while any(len(state) < len(text) for state, text in zip(states, texts, strict=True)):
        lengths = [min(len(state), 15) for state in states]
        going = [len(state) < len(text) and choice.random() < 0.7 for state, text in zip(states, texts, strict=True)]
        # A sequence that waits is fed something else, which its next step overwrites.
        feed = [text[at] if goes else choice.randrange(VOCAB) for text, at, goes in zip(texts, lengths, going, strict=True)]
        step = target.step(torch.tensor(feed), torch.tensor(lengths), choice.randint(max(lengths) + 1, 16))
        for slot in range(3):
            if going[slot]:
                states[slot].append((step.captures[slot], step.final[slot]))
    final, captures = target.whole(torch.tensor([text + [0] * (16 - len(text)) for text in texts]))
    for row, text in enumerate(texts):
        expect_states(target, model, text, captures[row, : len(text)], final[row, : len(text)])
    target.begin(1, torch.tensor(texts[1][:9]))
    step = target.step(torch.tensor([0, texts[1][9], 0]), torch.tensor([0, 9, 0]), 10)
    torch.testing.assert_close(step.captures[1], captures[1, 9], rtol=0, atol=1e-4)
    for text, state in zip(texts, states, strict=True):
        captures, final = (torch.stack(parts) for parts in zip(*state, strict=True))
        expect_states(target, model, text, captures, final)


def test_missing_gpu_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("cpu") == torch.device("cpu")
    with pytest.raises(TrainingError, match="torch finds no GPU — leave"):
        torch_device("cuda")
