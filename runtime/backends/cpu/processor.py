"""The processor's name, and how many cores and how much memory this process may use: what its container has, not what the host has."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .cgroup import cpu_quota, memory_limit


def processor_name(root: Path = Path("/")) -> str:
    """The processor's model name, with its family and model numbers on x86: a virtual machine's name, such as "AMD EPYC", tells too little.
    ``root``: where /proc is."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = first.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {first[key]}" for key in ("cpu family", "model") if key in first]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def usable_cores(root: Path = Path("/")) -> int:
    """Threads that are worth starting: the physical cores of this process's affinity, or fewer if its container has a smaller CPU quota.

    Hyper-threads of one core count once, as matrix products gain nothing from the second. A quota of 1.5 counts as 2, one of 1.4 as 1: a
    thread with less than half a core of its own stops the others more than it helps. ``root``: where /sys, /proc and the groups are.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in cpus:
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    quota = cpu_quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), int(quota + 0.5)))


def usable_memory(root: Path = Path("/")) -> int | None:
    """Bytes: the machine's memory, or less if this process's container has a limit. None if the system does not say."""
    names = getattr(os, "sysconf_names", {})
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else None
    return min((size for size in (machine, memory_limit(root)) if size is not None), default=None)
