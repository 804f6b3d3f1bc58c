"""Engines of the same models for the CPU and for TensorRT, and an emulated GPU that runs the latter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Decoder
from tests.support.eagle_engines import export, write_echo
from tests.support.gpu.device_draws import DeviceDraws
from tests.support.gpu.emulated_tensorrt import EmulatedMachine

SIZES = (1, 2, 5, 16, 40)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Engine directories for the CPU and for TensorRT, with the same weights in fp32."""
    folder = tmp_path_factory.mktemp("trt")
    write_echo(folder / "target", folder / "draft")
    sizes = "--max-context", "250", "--prefill-rows", "16"
    host = export(folder / "target", folder / "draft", folder / "host", *sizes)
    precise = (
        "--backend",
        "tensorrt",
        "--precision",
        "fp32",
        "--draft-precision",
        "fp32",
        "--tree-sizes",
        ",".join(map(str, SIZES)),
        "--lanes",
        "4",
    )
    return host, export(folder / "target", folder / "draft", folder / "device", *sizes, *precise)


@pytest.fixture
def host(engines: tuple[Path, Path]) -> Iterator[Decoder]:
    with Decoder(engines[0]) as decoder:
        yield decoder


@pytest.fixture
def machine(engines: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedMachine]:
    made = EmulatedMachine(engines[1], monkeypatch)
    yield made
    assert all(each.closed for each in made.cuda.streams)
    assert made.cuda.leaked() == (0, 0)


@pytest.fixture(autouse=True)
def host_draws_as_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.decoding.gumbel.GumbelMaxSampler", DeviceDraws)
