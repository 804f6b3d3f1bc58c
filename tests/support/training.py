"""Tiny drafts and conversations for the tests of draft training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.checkpoints.arch import Arch
from export.checkpoints.draft_checkpoint import HEAD
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training.draft import DraftShape, TorchDraft
from export.training.pack import draft_config, pack_run
from export.training.target import StepOutput, TorchTarget
from export.training.unroll import Batch, collate
from export.training.words.corpus import Conversation
from export.training.words.segments import ANSWER, PROMPT
from tests.support.tiny import reference

CPU = torch.device("cpu")


def random_draft(arch: Arch, size: int = 100, norms: bool = False) -> TorchDraft:
    """Nothing left at its start, matrices wide enough that attention picks single rows, and exactly representable in bfloat16."""
    generator = torch.Generator().manual_seed(3)
    draft = TorchDraft(DraftShape.of_target(arch, norms), torch.randperm(arch.vocab, generator=generator)[:size].sort().values)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((1 + 0.3 * noise if noise.dim() == 1 else 1.5 * noise * parameter.shape[-1] ** -0.5).bfloat16())
    return draft


@dataclass(frozen=True)
class Computed:
    """A conversation with what its target computes at each token: captures [n, 3H] and final [n, H]."""

    conversation: Conversation
    captures: Tensor
    final: Tensor

    def __len__(self) -> int:
        return len(self.conversation)

    @property
    def tokens(self) -> np.ndarray:
        return self.conversation.tokens

    @property
    def kinds(self) -> np.ndarray:
        return self.conversation.kinds


def random_conversation(length: int, seed: int, answers: Sequence[slice], target: HuggingFaceCheckpoint) -> Computed:
    """Random tokens and states. The target clearly prefers one of the first 60 tokens; all other tokens are a prompt."""
    arch, head = target.arch, torch.from_numpy(target.read(HEAD))
    generator = torch.Generator().manual_seed(seed)
    kinds = np.full(length, PROMPT, np.uint8)
    for each in answers:
        kinds[each] = ANSWER
    tokens = torch.randint(arch.vocab, (length,), generator=generator, dtype=torch.int32).numpy()
    return Computed(
        Conversation(tokens, kinds, "random"),
        torch.randn(length, 3 * arch.hidden, generator=generator),
        2 * head[torch.randint(60, (length,), generator=generator)] + 0.3 * torch.randn(length, arch.hidden, generator=generator),
    )


def batch_of(computed: Sequence[Computed]) -> Batch:
    """As the training makes it, where the target computes what ``computed`` has."""

    def states(_: Sequence[Conversation], __: Tensor) -> StepOutput:
        finals, captures = ([getattr(each, name) for each in computed] for name in ("final", "captures"))
        return StepOutput(*(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) for parts in (finals, captures)))

    return collate([each.conversation for each in computed], states, CPU)


def packed(draft: TorchDraft, out: Path, form: str = "specforge") -> Path:
    """``draft`` as pack_run writes it from the checkpoint of a run."""
    run = out / "run"
    run.mkdir(parents=True)
    torch.save({"draft": draft.state_dict(), "tokens": draft.tokens, "config": draft_config(draft.shape)}, run / "best.pt")
    pack_run(run, out / form, form, "tiny/target")
    return out / form


def torch_target(directory: Path, model: Any, batch: int, capacity: int) -> TorchTarget:
    model.save_pretrained(directory)
    return TorchTarget(HuggingFaceCheckpoint(directory), batch, capacity, CPU, torch.float32)


def expect_states(target: TorchTarget, model: Any, tokens: list[int], captures: Tensor, final: Tensor) -> None:
    """Every position of a conversation as transformers computes it from the whole."""
    logits, streams = reference(model, tokens)
    expected = np.concatenate([streams[layer] for layer in target.arch.captured], axis=-1)
    np.testing.assert_allclose(captures.numpy(), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose((final @ target.head.T).numpy(), logits, rtol=0, atol=1e-4)
