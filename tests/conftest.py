"""Engine directories shared by the tests, tiny ones and the demo model's; the export of a tiny checkpoint; a toy's server."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from export.cli import command
from runtime import Decoder
from runtime.console import run_command
from tests.support.ended import Ended
from tests.support.exporting import Run

if TYPE_CHECKING:
    from tests.support.serve.fakes import ToyDecoder
    from tests.support.serve.serving import Served

# The references run in torch on one thread: with two, the second thread's half of a rotary table was once 1e-4 off, in one run of several,
# by a call that is exact otherwise. Set before torch is imported, which not every test needs.
os.environ["OMP_NUM_THREADS"] = "1"


# The same cases in every run, however slow the machine: whether a test passes is no matter of luck. tests/stress/ has programs that draw
# new ones.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


if hasattr(signal, "SIGHUP"):  # under nohup the commands that tests start would ignore it too
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _take_cores(worker: str, workers: int) -> None:
    """Gives this process its share of the cores. With a thread for every core in every worker, threads wait for each other: a tiny engine
    takes three times the time. Tests of several threads ask for them."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= workers:
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers])


if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    _take_cores(os.environ["PYTEST_XDIST_WORKER"], int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `scripts/check --fast` leaves out: by fixture what runs the demo model, by folder TensorRT's builds and the long runs.

    The demo model's tests come first: they are the longest, so several workers end at about the same time.
    """
    for item in items:
        if "demo_engine" in getattr(item, "fixturenames", ()):
            item.add_marker("real")
        if "tensorrt" in item.nodeid:
            item.add_marker("trt")
        if "stress" in item.path.parts:
            item.add_marker("stress")
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-layer random llama with a vocabulary of 320, fully exported."""
    root = tmp_path_factory.mktemp("tiny")
    assert run_command(command, "resps-export", ["--weights", str(tiny_checkpoint), "--out", str(root), "--name", "tiny"]) == 0
    return root / "tiny"


@pytest.fixture
def decoder(tiny_engine: Path) -> Iterator[Decoder]:
    with Decoder(tiny_engine, threads=1) as decoder:
        yield decoder


@pytest.fixture(scope="session")
def echo_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with a draft that is often right. Whoever changes it changes a copy."""
    from tests.support.eagle_engines import export_echo

    return export_echo(tmp_path_factory.mktemp("echo"), "--max-context", "250", "--prefill-rows", "16")


@pytest.fixture(scope="module")
def eagle_decoder(echo_engine: Path) -> Iterator[Decoder]:
    """A decoder of that engine, without text lookup."""
    with Decoder(echo_engine, draft="eagle") as decoder:
        yield decoder


@pytest.fixture(scope="session")
def demo_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """SmolLM2-135M in a precision, exported once for all workers (its weights come from the package index)."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo-engines"

    def engine(precision: str) -> Path:
        with FileLock(f"{root}-{precision}.lock"):
            if not (root / precision).exists():
                line = [
                    "--model",
                    "smollm2-135m",
                    "--precision",
                    precision,
                    "--out",
                    str(root),
                    "--name",
                    precision,
                    "--max-context",
                    "1024",
                ]
                assert run_command(command, "resps-export", line) == 0
        return root / precision

    return engine


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a tiny llama. Whoever changes it changes a copy."""
    from tests.support.tiny import write_checkpoint

    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_checkpoint(directory)
    return directory


@pytest.fixture
def source(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of it, ready to be exported."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def run(source: Path, engines: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command on ``source`` in this process; further arguments may override --weights."""

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        base = ["--weights", str(source), "--out", str(engines), "--max-context", "64"]
        code = run_command(command, "resps-export", [*base, *arguments])
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture
def toy() -> ToyDecoder:
    """What `served` answers with."""
    from tests.support.serve.fakes import ToyDecoder

    return ToyDecoder()


@pytest.fixture
def served(toy: ToyDecoder) -> Iterator[Served]:
    """A server over it."""
    from tests.support.serve.serving import serving

    with serving([toy]) as served:
        yield served
