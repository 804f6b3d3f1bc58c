"""Measures how busy other processes keep the machine (Linux)."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 2.0


def busy_seconds() -> float:
    """CPU seconds that the machine has spent, time stolen by its host included; 0 if the system has no /proc/stat."""
    stat = Path("/proc/stat")
    return cpu_seconds(stat.read_text(encoding="ascii")) if stat.is_file() else 0.0


def cpu_seconds(stat: str) -> float:
    """The same from the text of /proc/stat: user, nice, system, irq, softirq and steal of the first line."""
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)))


@dataclass
class Load:
    """Measures from its creation to the call of ``others``."""

    busy: float = field(default_factory=busy_seconds)
    own: float = field(default_factory=own_seconds)
    started: float = field(default_factory=time.monotonic)

    def others(self) -> float:
        """Cores that other processes used on average."""
        others = (busy_seconds() - self.busy) - (own_seconds() - self.own)
        return max(0.0, others) / max(1e-9, time.monotonic() - self.started)


def wait_for_quiet(cores: float, at_most_seconds: float, sample: Callable[[], float] | None = None) -> bool:
    """Wait until other processes use no more than ``cores``; False if the time ran out first."""
    deadline = time.monotonic() + at_most_seconds
    while (sample or _sample)() > cores:
        if time.monotonic() > deadline:
            return False
    return True


def _sample() -> float:
    load = Load()
    time.sleep(SAMPLE_SECONDS)
    return load.others()
