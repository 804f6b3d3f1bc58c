"""GPU worlds: latency models of GPUs that are not at hand, from published figures. What comes of them is simulated, and always says so."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from policy import LanesLatency
from runtime.manifest.typed_json import decode

WORLDS = Path(__file__).parents[1] / "worlds"
LANES = (1, 2, 4, 8, 16)
ROWS = tuple(sorted({*range(1, 9), *(edge + more for edge in range(0, 1025, 64) for more in (1, 64))}))
SPANS = (0, 8192)
WIDTHS, DEPTHS = (1, 10), (1, 16)


@dataclass(frozen=True)
class Number:
    """A figure and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class World:
    """One GPU, model and precision. ``plain_ms``: a pass with one row. ``bandwidth_gb_s``, ``peak_tflops``: of all GPUs together.
    ``reached``: the share of the peak that products reach. ``tile_rows``: rows that products compute at a time. ``kv_bytes``: keys and
    values of a token. ``draft_step_ms``: a draft pass. ``host_ms``: the rest of a round."""

    name: str
    described: str
    plain_ms: Number
    bandwidth_gb_s: Number
    peak_tflops: Number
    reached: Number
    tile_rows: Number
    parameters: Number
    draft_parameters: Number
    kv_bytes: Number
    draft_step_ms: Number
    host_ms: Number

    def pass_ms(self, rows: int, lanes: int, length: int) -> float:
        """Milliseconds of a pass: weights are read once, or the products take longer; keys and values are read for every lane."""
        cache = lanes * length * self.kv_bytes.value / (self.bandwidth_gb_s.value * 1e6)
        return max(self.plain_ms.value, self._product_ms(rows, self.parameters.value)) + cache

    def draft_ms(self, lanes: int, width: int, depth: int) -> float:
        """Milliseconds of ``depth`` draft passes over the beams of ``lanes`` lanes."""
        return depth * max(self.draft_step_ms.value, self._product_ms(lanes * width, self.draft_parameters.value))

    def _product_ms(self, rows: int, parameters: float) -> float:
        tile = int(self.tile_rows.value)
        return 2 * parameters * (-(-rows // tile) * tile) / (self.peak_tflops.value * self.reached.value * 1e9)

    @cached_property
    def latency(self) -> LanesLatency:
        """The world as a latency model."""
        return LanesLatency(
            lanes=LANES,
            rows=ROWS,
            spans=SPANS,
            verify_ms=tuple(
                tuple(tuple(self.pass_ms(max(rows, lanes), lanes, span) for rows in ROWS) for lanes in LANES) for span in SPANS
            ),
            widths=WIDTHS,
            depths=DEPTHS,
            draft_ms=tuple(tuple(tuple(self.draft_ms(lanes, width, depth) for depth in DEPTHS) for width in WIDTHS) for lanes in LANES),
            host_ms=tuple(self.host_ms.value for _ in LANES),
        )


def world_names() -> tuple[str, ...]:
    """The worlds that there are."""
    return tuple(sorted(file.stem for file in WORLDS.glob("*.json")))


def load_world(name: str) -> World:
    """The world with this name, one of `world_names`."""
    world: World = decode(World, json.loads((WORLDS / f"{name}.json").read_text(encoding="utf-8")), name)
    return world
