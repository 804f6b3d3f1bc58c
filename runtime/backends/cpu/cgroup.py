"""The limits that a container has: Linux control groups, version 1 and 2, nested ones included.

A process sees all processors and all memory of the host; what it may use of them is in files of its control group and of every group above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MAX_BYTES = 1 << 60  # version 1 writes a number near 2**63 where there is no limit


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processor seconds that this process may use per second, such as 1.5; None without a limit. ``root``: where /proc and the mounted
    control groups are."""
    quotas = []
    for folder in _groups(root, "cpu"):
        match _numbers(folder / "cpu.max"), _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us"):
            case ([quota, period], _, _) | (_, [quota], [period]) if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may use together with the rest of its control group; None without a limit. ``root``: as above."""
    files = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [number for folder in _groups(root, "memory") for name in files for number in _numbers(folder / name)]
    return min((limit for limit in limits if 0 < limit < _MAX_BYTES), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups that may limit ``controller``, from its own group up to the mounted one."""
    paths = {}  # of the group in each hierarchy, by controller; "" is version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        name = {"cgroup2": "", "cgroup": controller}.get(kind.split()[0])
        if name in paths and (name == "" or controller in kind.split()[2].split(",")):
            top, mounted = (_unescaped(field) for field in fields.split()[3:5])
            folder = root / mounted.lstrip("/")
            group = PurePosixPath(paths[name])
            # In a container only its own group may be mounted, or its path may be one outside of what is visible here.
            inside = group.relative_to(top).parts if group.is_relative_to(top) else ()
            for depth in range(0 if ".." in inside else len(inside), -1, -1):
                yield folder.joinpath(*inside[:depth])


def _unescaped(field: str) -> str:
    """A path of mountinfo, where a space is \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file, "max" and -1 as -1; none if it cannot be read."""
    words = " ".join(_lines(file)).replace("max", "-1").split()
    return [int(word) for word in words] if all(re.fullmatch(r"-?\d+", word) for word in words) else []


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
