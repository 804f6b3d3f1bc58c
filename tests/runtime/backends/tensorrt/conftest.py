"""Engines of the same models for the CPU and for TensorRT, and an emulated GPU that runs the latter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Decoder
from tests.support.gpu.both_engines import make_engines
from tests.support.gpu.device_draws import DeviceDraws
from tests.support.gpu.emulated_tensorrt import EmulatedMachine


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_engines(tmp_path_factory.mktemp("trt"))


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
