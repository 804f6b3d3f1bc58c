"""What a step of resps-train needs of the machine, said and checked before it begins."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from runtime.backends.cpu.processor import usable_memory

from ..checkpoints.arch import Arch
from .draft import DraftShape, TorchDraft
from .errors import TrainingError
from .losses import CHUNK

PROCESS_BYTES = 700 << 20  # Python, torch and its work space
SMALL_FILES = 4 << 20  # log and report
CONVERSATION_BYTES = 600  # of the objects that hold it, beside 5 a token
HOLES = 1.25  # of what an update needs, beside the freed memory that rests: 1.05 was seen in 850 updates


@dataclass(frozen=True)
class Need:
    """Bytes of memory (of the GPU, if it computes) and of disk. ``rest``: of memory, between updates."""

    memory: int
    disk: int
    rest: int = 0

    def beside(self, memory: int) -> Need:
        """The same, beside so many bytes of memory."""
        return Need(self.memory + memory, self.disk, self.rest + memory)


def generation_bytes(arch: Arch, batch: int, capacity: int, tokens: int, size: int) -> Need:
    """For ``batch`` conversations of at most ``capacity`` tokens side by side, and ``tokens`` tokens on disk. ``size``: bytes of a number
    that is computed."""
    cache = 2 * size * arch.layers * batch * arch.kv_heads * arch.head_dim * capacity
    logits = batch * arch.vocab * (size + 4 + 4 + 4)
    memory = PROCESS_BYTES + _target_bytes(arch, size) + cache + logits + size * _pass_numbers(arch, capacity)
    return Need(memory, 5 * (tokens + batch * capacity))


def training_bytes(arch: Arch, vocab: int, batch_tokens: int, longest: int, steps: int, size: int, keep: int, holes: bool) -> Need:
    """For updates of ``batch_tokens`` tokens in conversations of at most ``longest``, ``steps`` times unrolled. ``size``: bytes of a number
    that is computed; ``keep``: bytes on disk for what the target computed. ``holes``: whether freed memory stays with the
    process between updates, at most as much as an update needs (`return_unused`)."""
    with torch.device("meta"):
        draft = TorchDraft(DraftShape.of_target(arch), torch.empty(vocab, dtype=torch.long))
    parameters = sum(each.numel() for each in draft.parameters())
    layer = size * (12 * arch.hidden + 4 * arch.intermediate) + arch.heads * longest * (4 + size)  # of a row, kept for the gradient
    rows = batch_tokens * (steps * layer + 3 * arch.heads * longest * 4 + size * vocab)  # the steps; scores of one; labels
    head = steps * 4 * vocab * arch.hidden + CHUNK * (6 * vocab + 3 * arch.vocab) * 4
    weights = _target_bytes(arch, size) + 16 * parameters
    update, base = rows + head + size * _pass_numbers(arch, batch_tokens), PROCESS_BYTES + weights
    disk = keep + 2 * 12 * parameters + 2 * 4 * parameters + SMALL_FILES  # state.pt and best.pt, while each is replaced
    return Need(base + update + round(HOLES * update) * holes, disk, base + update)


def expect_room(out: Path, need: Need, device: torch.device) -> str:
    """The line that says what is needed. Raises TrainingError if the machine has less. ``out``: a directory that is there."""
    gpu = device.type == "cuda"
    free = shutil.disk_usage(out).free + sum(file.stat().st_size for file in out.glob("*.pt"))  # of a run that goes on
    memory = torch.cuda.mem_get_info(device)[0] if gpu else usable_memory()
    if free < need.disk:
        raise TrainingError(f"{out} has {free >> 20} MiB free, up to {need.disk >> 20} are needed — free some space, or use another --out")
    if memory is not None and memory < need.memory:
        raise TrainingError(
            f"up to {need.memory >> 20} MiB of memory are needed, this process may use {memory >> 20} — make the batch smaller: --batch or "
            "--batch-tokens"
        )
    return f"needs up to {need.memory >> 20} MiB of {'GPU memory' if gpu else 'memory'} and {-(-need.disk >> 20)} MiB of disk"


def return_unused(rest: int) -> None:
    """Give free memory back to the system, which takes 0.1 s, if the process has more than ``rest`` bytes. glibc keeps the holes between
    blocks in use, which after updates of many shapes are several times what an update needs; other C libraries have no such call."""
    with contextlib.suppress(AttributeError, OSError):
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
        if (resident - shared) * os.sysconf("SC_PAGE_SIZE") > rest:
            ctypes.CDLL(None).malloc_trim(0)


def _target_bytes(arch: Arch, size: int) -> int:
    """The target's weights, and a float32 copy of the largest while they are read."""
    heads = (2 * arch.heads + 2 * arch.kv_heads) * arch.head_dim
    table = arch.vocab * arch.hidden
    weights = arch.layers * arch.hidden * (heads + 3 * arch.intermediate) + table * (1 if arch.tied_head else 2)
    return size * weights + 4 * table


def _pass_numbers(arch: Arch, rows: int) -> int:
    """In a pass of the target over ``rows`` tokens."""
    return rows * (12 * arch.hidden + 4 * arch.intermediate)
