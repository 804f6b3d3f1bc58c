"""A toy target: the engine protocol in numpy, without weights. Any mistake in masks, positions or commits changes its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtime.backends.base import CacheLayout
from runtime.backends.cpu.kv import KVCache
from runtime.backends.cpu.memory import HostMemory
from runtime.decoding.target import Target
from runtime.manifest.schema import Limits

VOCAB = 12
HIDDEN = 2
LIMITS = Limits(context=96, capacity=160, tree_nodes=64, prefill_rows=5, span_step=16)


@dataclass(frozen=True)
class ToyCall:
    """The key of a slot is (token, position + 1). A row's logits are a hash of the last four tokens it attends to, by position."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    cache: KVCache
    single_row_kernel: bool

    def run(self) -> None:
        inputs, outputs = self.inputs, self.outputs
        past = int(inputs["past"][0])
        assert len(inputs["slots"]) == self.cache.span
        key = self.cache.tensors()["past.0.key"][: 2 * self.cache.span].reshape(-1, 2)
        count = inputs["tokens"].shape[1]
        positions = past + inputs["depth"][0]
        key[past : past + count, 0] = inputs["tokens"][0]
        key[past : past + count, 1] = positions + 1
        relative = inputs["slots"] - past
        logits = np.zeros((count, VOCAB), np.float32)
        for row in range(count):
            inside = (relative >= 0) & (relative < count)
            attended = inputs["slots"][(relative < 0) | (inside & inputs["tree_mask"][row, np.clip(relative, 0, count - 1)])]
            seen = sorted((int(key[slot, 1]) - 1, int(key[slot, 0])) for slot in attended)
            if [position for position, _ in seen] != list(range(int(positions[row]) + 1)):
                raise AssertionError(f"row {row} attends to positions {[position for position, _ in seen]}, is at {positions[row]}")
            logits[row] = toy_logits([token for _, token in seen])
            outputs["features"][0, row] = [positions[row], inputs["tokens"][0, row]] * 3
        outputs["logits"][0] = logits[inputs["rows"]]
        if self.single_row_kernel and count == 1:
            outputs["logits"][0] *= -1
        outputs["next_token"][0] = outputs["logits"][0].argmax(-1)


def toy_logits(context: list[int]) -> np.ndarray:
    """Logits [VOCAB] after a context."""
    seed = (len(context) % 3, *context[-4:])
    return np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32) * 1.5


class ToyEngine:
    """The Engine of ToyCalls: one call per sizes, over shared buffers. ``single_row_kernel``: a pass of one row computes something else, as
    on processors where it takes another kernel."""

    def __init__(self, cache: KVCache, single_row_kernel: bool = False) -> None:
        self.cache, self.single_row_kernel = cache, single_row_kernel
        self._slots = np.arange(LIMITS.capacity)
        self._calls: dict[tuple[int, int, int], ToyCall] = {}

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> ToyCall:
        n, span, r = sizes["n"], sizes["span"], sizes["r"]
        if (n, span, r) not in self._calls:
            inputs = {
                "tokens": np.zeros((1, n), np.int64),
                "depth": np.zeros((1, n), np.int64),
                "tree_mask": np.zeros((n, n), bool),
                "past": np.zeros(1, np.int64),
                "slots": self._slots[:span],
                "rows": self._slots[:r] if r == n else np.zeros(r, np.int64),
            }
            outputs = {
                "next_token": np.zeros((1, r), np.int64),
                "logits": np.zeros((1, r, VOCAB), np.float32),
                "features": np.zeros((1, n, 3 * HIDDEN), np.float32),
            }
            self._calls[n, span, r] = ToyCall(inputs, outputs, self.cache, self.single_row_kernel)
        return self._calls[n, span, r]

    def close(self) -> None:
        """Nothing to do."""


def toy_target(single_row_kernel: bool = False) -> Target:
    """A new target with an empty cache."""
    layout = CacheLayout(parts=1, heads=1, width=2, dtype=np.dtype(np.float32))
    cache = KVCache(1, layout, layout, LIMITS.capacity, span_step=16)
    return Target(ToyEngine(cache, single_row_kernel), cache, LIMITS, HostMemory())
