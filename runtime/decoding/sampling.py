"""How the next token is chosen from the target's scores: greedy, or on a device by inverse CDF with one seeded uniform per position (on
the host: draws.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..backends.base import Buffer, Call, DeviceOutputs, Engine, Memory
from ..errors import EngineFailure
from ..sampling_params import SamplingParams
from .tree import Tree

Pick = Callable[["Scores", int, int], int]
"""(scores, row, position) -> token: the target's choice after ``row``, for the sequence position ``position``."""


@dataclass(frozen=True)
class Scores:
    """Results of one target pass, read from the engine's buffers when asked for; valid until its next pass.

    ``tree``: what was scored; ``past``: committed slots before it; ``head_rows``: its last rows, the ones with logits.
    """

    outputs: Mapping[str, np.ndarray]
    tree: Tree
    past: int
    head_rows: int

    @property
    def next_token(self) -> np.ndarray:
        """int64 [head_rows], the argmax."""
        return self._first("next_token")

    @property
    def logits(self) -> np.ndarray:
        """float32 [head_rows, V]."""
        return self._first("logits")

    @property
    def features(self) -> np.ndarray:
        """[n, 3H]."""
        return self._first("features")

    def expect_numbers(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Raises EngineFailure unless the logits that ``tokens`` were chosen from at ``rows`` are numbers. On a device, where looking is a
        copy, only the last token's own: what is no number in a row gets into all that attend to it."""
        if isinstance(self.outputs, DeviceOutputs):
            worst = self.outputs.element("logits", rows[-1], tokens[-1])
        else:
            logits = self.logits
            worst = sum(float(np.add.reduce(logits[row])) for row in rows)  # some microseconds a row; NaN and infinity stay what they are
        if not worst < math.inf:
            raise EngineFailure("the target's scores are no numbers — its precision is too low or the engine damaged: export again")

    def _first(self, name: str) -> np.ndarray:
        batch_of_one: np.ndarray = self.outputs[name][0]
        return batch_of_one


def greedy(scores: Scores, row: int, position: int) -> int:
    """The argmax, computed in the graph."""
    return int(scores.next_token[row])


def uniforms(seed: int | None, positions: int) -> np.ndarray:
    """One uniform per sequence position, float32 [positions], multiples of 2**-23 below 1.

    Keyed by position and not by row, so a seed gives the same text whatever the tree. 23 bits: u * total stays below total in float32, so
    the inverse CDF always finds a token.
    """
    bits = np.random.Generator(np.random.Philox(seed)).integers(0, 2**23, positions)
    return (bits / 2**23).astype(np.float32)


class BatchInverseCdf:
    """Samples every row of a pass at once, where the logits lie: on a device that costs less than to look at them."""

    def __init__(self, engine: Engine, memory: Memory, table: Buffer, params: SamplingParams, positions: int) -> None:
        """``table``: the buffer of the graph's uniforms."""
        memory.write(table, uniforms(params.seed, positions))
        self._engine, self._params, self._positions = engine, params, positions
        self._drawn: tuple[Scores, np.ndarray] | None = None

    def __call__(self, scores: Scores, row: int, position: int) -> int:
        if self._drawn is None or self._drawn[0] is not scores:
            self._drawn = scores, self._draw(scores)
        return int(self._drawn[1][row])

    def _draw(self, scores: Scores) -> np.ndarray:
        call = self._engine.prepare(n=scores.head_rows, p=self._positions)
        inputs = _settled(call, self._params)
        inputs["depth"][0] = scores.tree.depth[-scores.head_rows :]
        inputs["past"][0] = scores.past
        call.run()
        return np.array(call.outputs["token"][0])


def _settled(call: Call, params: SamplingParams) -> Mapping[str, np.ndarray]:
    """The call's inputs, with what stays the same during a request filled in."""
    inputs = call.inputs
    inputs["temperature"][0], inputs["top_k"][0], inputs["top_p"][0] = params.temperature, params.top_k, params.top_p
    return inputs
