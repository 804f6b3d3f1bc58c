"""Costs of rounds of several lanes, worked out by hand."""

from __future__ import annotations

from policy import LanesLatency

# Milliseconds: a pass costs 20, each row 1, each lane 0.5; a level of drafting 2, each lane 0.5 more.
LANES, ROWS = (1, 2, 4, 8), (1, 2, 4, 8, 16, 64)
MODEL = LanesLatency(
    LANES,
    ROWS,
    (100, 1000),
    tuple(tuple(tuple(20.0 + span + 0.5 * lanes + max(rows, lanes) for rows in ROWS) for lanes in LANES) for span in (0, 9)),
    (1, 3),
    (1, 6),
    tuple(tuple(tuple(depth * (1.5 + 0.5 * lanes) for depth in (1, 6)) for _ in (1, 3)) for lanes in LANES),
    tuple(0.1 * lanes for lanes in LANES),
)
