"""Cores and memory are what the container has: affinity, and the limits of control groups in both versions, in made-up file systems."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from runtime import Decoder, RespsError
from runtime.backends.cpu.cgroup import cpu_quota, memory_limit
from runtime.backends.cpu.processor import processor_name, usable_cores, usable_memory
from runtime.console import run_command
from runtime.errors import memory_errors
from tests.support.exporting import Run

ROOT = Path(__file__).resolve().parents[3]
V2_MOUNT = "30 23 0:26 {top} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_CPU = "32 31 0:29 {top} {at} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "35 31 0:32 {top} {at} rw,relatime - cgroup cgroup rw,memory\n"
OTHER = "23 28 0:22 / /proc rw,nosuid - proc proc rw\n31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
V2, V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/cpu,cpuacct"
UNLIMITED = "9223372036854771712\n"


def system(root: Path, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    """A file system with these /proc/self/cgroup, /proc/self/mountinfo and files."""
    for name, content in {"/proc/self/cgroup": groups, "/proc/self/mountinfo": OTHER + mounts, **files}.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def v2(top: str = "/", at: str = V2) -> str:
    return V2_MOUNT.format(top=top, at=at)


def v1(top: str = "/", at: str = V1) -> str:
    return V1_CPU.format(top=top, at=at)


def quota_files(at: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{at}/cpu.cfs_quota_us": f"{quota}\n", f"{at}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/\n", v2(), {f"{V2}/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", v2(), {f"{V2}/cpu.max": "max 100000\n"}, None),
        ("0::/\n", v2(), {f"{V2}/cpu.max": "75000 50000\n"}, 1.5),
        ("0::/\n", v2(), {}, None),
        ("0::/\n", v2(), {f"{V2}/cpu.max": "nonsense\n"}, None),
        ("0::/\n", v2(), {f"{V2}/cpu.max": "100000 0\n"}, None),
        # nested: the smallest limit on the way up holds
        ("0::/a/b\n", v2(), {f"{V2}/a/cpu.max": "150000 100000\n", f"{V2}/a/b/cpu.max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", v2(), {f"{V2}/a/cpu.max": "900000 100000\n", f"{V2}/a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a\n", v2(), {f"{V2}/other/cpu.max": "50000 100000\n"}, None),
        # only the container's own group is mounted, as Docker does without a name space for groups
        ("0::/docker/x\n", v2("/docker/x"), {f"{V2}/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/docker/x/y\n", v2("/docker/x"), {f"{V2}/cpu.max": "300000 100000\n", f"{V2}/y/cpu.max": "100000 100000\n"}, 1.0),
        ("0::/../sibling\n", v2(), {f"{V2}/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/a\n", v2("/b"), {f"{V2}/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/\n", v2(at="/mnt/my\\040groups"), {"/mnt/my groups/cpu.max": "200000 100000\n"}, 2.0),
        # version 1
        ("4:cpu,cpuacct:/\n0::/\n", v1(), quota_files(V1, 200_000), 2.0),
        ("4:cpu,cpuacct:/\n0::/\n", v1(), quota_files(V1, -1), None),
        ("4:cpu,cpuacct:/\n", v1(), {f"{V1}/cpu.cfs_quota_us": "100000\n"}, None),
        ("4:cpu,cpuacct:/docker/x\n", v1("/docker/x"), quota_files(V1, 250_000), 2.5),
        ("4:cpu,cpuacct:/a/b\n", v1(), quota_files(f"{V1}/a", 100_000) | quota_files(f"{V1}/a/b", -1), 1.0),
        ("4:cpuset:/a\n5:cpu,cpuacct:/\n", v1(), quota_files(f"{V1}/a", 100_000), None),
        # both versions at once
        ("4:cpu,cpuacct:/\n0::/\n", v1() + v2(at="/sys/fs/cgroup/unified"), quota_files(V1, 200_000), 2.0),
        ("0::/\n", "", {}, None),
        ("", "", {}, None),
    ],
    ids=str,
)
def test_the_cpu_quota_is_the_smallest_on_the_way_up(
    tmp_path: Path, groups: str, mounts: str, files: Mapping[str, str], expected: float | None
) -> None:
    assert cpu_quota(system(tmp_path, groups, mounts, files)) == expected


@pytest.mark.parametrize(
    ("cpus", "quota", "expected"),
    [
        (16, "200000 100000", 2),
        (16, "max 100000", 16),
        (2, "1600000 100000", 2),
        (16, "150000 100000", 2),
        (16, "140000 100000", 1),
        (16, "25000 100000", 1),
        (16, "350000 100000", 4),
    ],
)
def test_threads_are_limited_by_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    assert usable_cores(system(tmp_path, "0::/\n", v2(), {f"{V2}/cpu.max": quota})) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n", "AMD EPYC (family 25, model 1)"),
        ("processor : 0\nmodel name : A core: fast\n", "A core: fast"),
    ],
)
def test_a_processor_is_known_by_more_than_a_virtual_machines_name(tmp_path: Path, text: str, name: str) -> None:
    assert processor_name(system(tmp_path, "", "", {"/proc/cpuinfo": text})) == name


def test_hyper_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 4}, raising=False)
    siblings = {f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}
    assert usable_cores(system(tmp_path, "0::/\n", v2(), siblings)) == 3


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/\n", v2(), {f"{V2}/memory.max": "2147483648\n"}, 2 << 30),
        ("0::/\n", v2(), {f"{V2}/memory.max": "max\n"}, None),
        ("0::/\n", v2(), {f"{V2}/memory.max": "max\n", f"{V2}/memory.high": "1073741824\n"}, 1 << 30),
        ("0::/a/b\n", v2(), {f"{V2}/a/memory.max": "1073741824\n", f"{V2}/a/b/memory.max": "max\n"}, 1 << 30),
        ("6:memory:/\n", V1_MEMORY.format(top="/", at="/cg/memory"), {"/cg/memory/memory.limit_in_bytes": "536870912\n"}, 512 << 20),
        ("6:memory:/\n", V1_MEMORY.format(top="/", at="/cg/memory"), {"/cg/memory/memory.limit_in_bytes": UNLIMITED}, None),
        (
            "6:memory:/k8s/pod\n",
            V1_MEMORY.format(top="/k8s/pod", at="/cg/memory"),
            {"/cg/memory/memory.limit_in_bytes": "1073741824\n"},
            1 << 30,
        ),
    ],
    ids=str,
)
def test_the_memory_limit_is_the_smallest_on_the_way_up(
    tmp_path: Path, groups: str, mounts: str, files: Mapping[str, str], expected: int | None
) -> None:
    root = system(tmp_path, groups, mounts, files)
    assert memory_limit(root) == expected
    machine = usable_memory(tmp_path / "no groups")
    assert usable_memory(root) == (machine if expected is None else min(expected, machine or expected))


def test_nothing_else_counts_cores_or_memory() -> None:
    """Also what numpy, torch and ONNX Runtime would count themselves."""
    files = [file for folder in ("policy", "runtime", "export", "scripts", "docs") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    for file in files:
        text = file.read_text(encoding="utf-8")
        if file.name != "processor.py":
            assert not re.search(r"cpu_count|sched_getaffinity|SC_PHYS_PAGES|psutil|virtual_memory", text), file
        if "InferenceSession(" in text and not re.search("CUDA|gpu", str(file), re.IGNORECASE):
            assert "intra_op_num_threads" in text, file


def test_the_threads_of_numpy_and_torch_follow_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.console.usable_cores", lambda: 3)
    seen = []
    command = click.Command("any", callback=lambda: seen.append(os.environ["OMP_NUM_THREADS"]))
    for given in ("", "7"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        if not given:
            monkeypatch.delenv("OMP_NUM_THREADS")
        run_command(command, "any", [])
    assert seen == ["3", "7"]


def test_a_container_too_small_for_the_engine_is_named(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Decoder(tiny_engine) as decoder:
        assert decoder.manifest.files
    assert caplog.messages == []
    monkeypatch.setattr("runtime.engine.usable_memory", lambda: 1 << 10)
    with Decoder(tiny_engine):
        pass
    (line,) = caplog.messages
    assert "this process may use 0 — give it more memory" in line


def test_a_container_too_small_for_the_export_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("export.build.usable_memory", lambda: 100 << 20)
    assert run("--no-draft").code == 0
    assert any("this process may use 100 — give it more" in line for line in caplog.messages)


@pytest.mark.parametrize(("error", "says"), [(MemoryError(), "engines — free some"), (MemoryError("3 GiB"), "engines: 3 GiB — free some")])
def test_too_little_memory_is_one_line(error: MemoryError, says: str) -> None:
    with pytest.raises(RespsError, match=says), memory_errors():
        raise error
