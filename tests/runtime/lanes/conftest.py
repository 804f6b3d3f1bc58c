"""Engines and a Decoder with lanes, which must lose no page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Decoder
from tests.support.decoder_lanes import LANES, forest_of
from tests.support.eagle_engines import export_echo
from tests.support.serve.serving import until


@pytest.fixture(scope="session", params=["fp32", "int8"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(f"lanes-{request.param}")
    return export_echo(root, "--prefill-rows", "64", "--precision", request.param)


@pytest.fixture(scope="module")
def lanes_decoder(engine: Path) -> Iterator[Decoder]:
    with Decoder(engine, threads=1, lanes=LANES) as decoder:
        yield decoder


@pytest.fixture
def decoder(lanes_decoder: Decoder) -> Iterator[Decoder]:
    """It is idle and has all of its pages afterwards."""
    decoder = lanes_decoder
    yield decoder
    until(lambda: forest_of(decoder).idle)
    caches = [forest_of(decoder).target.cache, *([draft.cache] if (draft := forest_of(decoder).draft) else [])]
    decoder.forget()
    assert all(cache.pool.free == cache.pool.count for cache in caches)
