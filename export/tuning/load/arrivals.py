"""When requests arrive: all at once, at a steady rate, in bursts, or as over a day. Times are milliseconds, ascending."""

from __future__ import annotations

import numpy as np

Times = list[float]
_DAY = 0.9  # how far the rate of a day swings from its mean


def at_once(count: int) -> Times:
    """All at the beginning: lanes are always full until the last requests, as with clients that never wait."""
    return [0.0] * count


def steady(count: int, per_second: float, seed: int) -> Times:
    """A Poisson process."""
    return list(np.cumsum(np.random.default_rng(seed).exponential(1000 / per_second, count)).tolist())


def bursts(count: int, per_second: float, size: int, seed: int) -> Times:
    """Groups of ``size`` requests that arrive together, at the same mean rate."""
    groups = steady(-(-count // size), per_second / size, seed)
    return [time for time in groups for _ in range(size)][:count]


def day(count: int, per_second: float, seed: int) -> Times:
    """A Poisson process whose rate goes up and down once, from a tenth of the mean at night to nearly twice the mean at noon."""
    random, whole, times = np.random.default_rng(seed), 1000 * count / per_second, Times()
    time = 0.0
    while len(times) < count:
        time += random.exponential(1000 / (per_second * (1 + _DAY)))
        if random.random() * (1 + _DAY) < 1 - _DAY * np.cos(2 * np.pi * time / whole):
            times.append(time)
    return times
