"""The output of a target pass and how the next token is chosen from it: greedily, or on a device by inverse CDF with one seeded uniform
per position. Sampling on the host is in gumbel.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..backends.base import Buffer, Call, DeviceOutputs, Engine, Memory
from ..errors import EngineFailure
from ..sampling_params import SamplingParams
from .tree import Tree

Sampler = Callable[["TargetOutput", int, int], int]
"""(output, row, position) -> token: the target's choice after ``row``, for the sequence position ``position``."""


@dataclass(frozen=True)
class TargetOutput:
    """The output of one target pass, read from the engine's buffers on access; valid until the next pass.

    ``tensors``: the engine's outputs, by name. ``tree``: the scored tree. ``past``: committed slots before it. ``head_rows``: the number of
    rows with logits, which are the tree's last ones.
    """

    tensors: Mapping[str, np.ndarray]
    tree: Tree
    past: int
    head_rows: int

    @property
    def next_token(self) -> np.ndarray:
        """The argmax of each row, int64 [head_rows]."""
        return self._without_batch("next_token")

    @property
    def logits(self) -> np.ndarray:
        """float32 [head_rows, V]."""
        return self._without_batch("logits")

    @property
    def features(self) -> np.ndarray:
        """Captured hidden states of the tree's rows, [n, 3H], without the rows that pad a pass."""
        return self._without_batch("features")[: len(self.tree)]

    def scores(self, row: int) -> np.ndarray:
        """The logits of one row, float32 [V]. From a device only they are copied."""
        return self.tensors.row("logits", row) if isinstance(self.tensors, DeviceOutputs) else np.asarray(self.logits[row])

    def check_logits(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Raises EngineFailure if the logits at ``rows`` hold NaN or plus infinity; ``tokens`` were chosen there.

        On a device, where reading costs a copy, it checks only the last token's logit: a NaN in one row spreads to all rows that attend to
        it.
        """
        if isinstance(self.tensors, DeviceOutputs):
            worst = self.tensors.element("logits", rows[-1], tokens[-1])
        else:
            logits = self.logits
            worst = sum(float(np.add.reduce(logits[row])) for row in rows)  # a sum keeps NaN and infinity, and takes microseconds per row
        if not worst < math.inf:
            raise EngineFailure("the target's logits are not finite — its precision is too low, or the engine is damaged: export again")

    def _without_batch(self, name: str) -> np.ndarray:
        first: np.ndarray = self.tensors[name][0]
        return first


def greedy(output: TargetOutput, row: int, position: int) -> int:
    """The Sampler of greedy decoding: the argmax, which the graph computes."""
    return int(output.next_token[row])


def uniforms(seed: int | None, positions: int) -> np.ndarray:
    """One uniform random number per sequence position, float32 [positions], multiples of 2**-23 below 1.

    They depend on the position and not on the row, so a seed gives the same text whatever the tree. With 23 bits, u * total stays below
    total in float32, so the inverse CDF always finds a token.
    """
    bits = np.random.Generator(np.random.Philox(seed)).integers(0, 2**23, positions)
    return (bits / 2**23).astype(np.float32)


class InverseCdfSampler:
    """The Sampler of a device. It samples every row of a pass in one engine call, which is cheaper than copying logits to the host."""

    def __init__(self, engine: Engine, memory: Memory, table: Buffer, params: SamplingParams, positions: int) -> None:
        """``engine``: runs the sample graph. ``table``: its buffer of uniforms, float32 [positions]."""
        self._engine, self._params, self._positions = engine, params, positions
        self._write = partial(memory.write, table)
        self._sampled: tuple[TargetOutput, np.ndarray] | None = None

    def __call__(self, output: TargetOutput, row: int, position: int) -> int:
        if self._sampled is None or self._sampled[0] is not output:
            self._sampled = output, self._sample(output)
        return int(self._sampled[1][row])

    def _sample(self, output: TargetOutput) -> np.ndarray:
        if self._sampled is None:  # not before: the table may be another request's, beside which this one is refused
            self._write(uniforms(self._params.seed, self._positions))
        call = self._engine.prepare(n=output.head_rows, p=self._positions)
        _write_params(call, self._params)
        call.inputs["depth"][0] = output.tree.depth[-output.head_rows :]
        call.inputs["past"][0] = output.past
        call.run()
        return np.array(call.outputs["token"][0])


def _write_params(call: Call, params: SamplingParams) -> None:
    inputs = call.inputs
    inputs["temperature"][0], inputs["top_k"][0], inputs["top_p"][0] = params.temperature, params.top_k, params.top_p
