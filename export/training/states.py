"""What the target computes at the tokens of conversations: computed when it is needed, and kept on disk up to a limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .target import StepOutput, TorchTarget
from .words.corpus import Conversation


def state_bytes(hidden: int) -> int:
    """Bytes of a token's states on disk: captures and final state in bfloat16."""
    return 2 * 4 * hidden


class States:
    """Computes the states of batches. Those that were computed before are read from ``file``, which holds at most ``limit`` bytes; it is
    the process's own and gone with it."""

    def __init__(self, target: TorchTarget, file: Path, limit: int) -> None:
        self.target, self.width = target, 4 * target.arch.hidden
        self.rows = limit // state_bytes(target.arch.hidden)
        self._starts: dict[bytes, int] = {}
        self._used = 0
        if self.rows:
            self._kept = np.memmap(file, np.int16, "w+", shape=(self.rows, self.width))  # sparse: it grows as it is filled
            file.unlink()  # the mapping keeps it until the process ends, however that happens

    def __call__(self, conversations: Sequence[Conversation], tokens: Tensor) -> StepOutput:
        """``tokens`` [B, S]: of the conversations, padded. Returns final [B, S, H] and captures [B, S, 3H]; zeros behind the end of a
        conversation that was read."""
        keys = [each.tokens.tobytes() for each in conversations]
        if all(key in self._starts for key in keys):
            return self._read(keys, tokens)
        states: StepOutput = self.target.whole(tokens)
        for row, (key, each) in enumerate(zip(keys, conversations, strict=True)):
            if key not in self._starts and self._used + len(each) <= self.rows:
                joined = torch.cat([states.final[row, : len(each)], states.captures[row, : len(each)]], -1)
                self._kept[self._used : self._used + len(each)] = joined.to("cpu", torch.bfloat16).view(torch.int16).numpy()
                self._starts[key] = self._used
                self._used += len(each)
        return states

    def _read(self, keys: Sequence[bytes], tokens: Tensor) -> StepOutput:
        kind = self.target.embedding.dtype
        joined = torch.zeros(*tokens.shape, self.width, dtype=torch.bfloat16)
        for row, key in enumerate(keys):
            start, length = self._starts[key], len(key) // 4  # tokens are int32
            joined[row, :length] = torch.from_numpy(np.array(self._kept[start : start + length])).view(torch.bfloat16)
        hidden = self.target.arch.hidden
        final, captures = joined.to(tokens.device, kind).split([hidden, 3 * hidden], -1)
        return StepOutput(final, captures)
