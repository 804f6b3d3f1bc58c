"""How many lanes a server has, and what it says about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runtime.errors import EngineDirError
from runtime.lanes import choose as lanes
from runtime.lanes.choose import PROCESS_BYTES, choose_lanes, described, lane_bytes
from runtime.manifest.load import read_manifest
from runtime.manifest.schema import Draft, Manifest, TargetShape


@pytest.fixture
def manifest(tiny_engine: Path) -> Manifest:
    return read_manifest(tiny_engine)


def without(manifest: Manifest, *graphs: str) -> Manifest:
    return replace(manifest, graphs={name: graph for name, graph in manifest.graphs.items() if name not in graphs})


def with_room(monkeypatch: pytest.MonkeyPatch, manifest: Manifest, count: float) -> None:
    """Let the process use the memory of ``count`` lanes beside the engine."""
    engine = sum(file.bytes for file in manifest.files.values()) + PROCESS_BYTES
    monkeypatch.setattr(lanes, "usable_memory", lambda: engine + int(count * lane_bytes(manifest)))


def test_a_lane_s_memory_is_keys_and_values_of_target_and_draft(manifest: Manifest, echo_engine: Path) -> None:
    def cache(model: TargetShape | Draft, slots: int) -> int:
        return -(-slots // 128) * 128 * model.layers * 2 * model.kv_heads * model.head_dim * 4  # whole pages

    assert manifest.draft is None
    assert lane_bytes(manifest) == cache(manifest.shape, manifest.limits.capacity)
    drafted = read_manifest(echo_engine)
    draft = drafted.draft
    assert draft is not None
    more = cache(draft, draft.capacity + drafted.limits.prefill_rows + draft.max_width * draft.max_depth)
    assert lane_bytes(drafted) == lane_bytes(drafted, "eagle") == lane_bytes(drafted, "ngram") + more


@pytest.mark.parametrize(
    ("room", "threads", "replicas", "expected"), [(99, 16, 1, 8), (99, 1, 1, 4), (5.5, 16, 1, 5), (11, 16, 2, 5), (0.5, 16, 1, 1)]
)
def test_the_default_is_what_memory_and_cores_bear(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, room: float, threads: int, replicas: int, expected: int
) -> None:
    with_room(monkeypatch, manifest, room)
    assert choose_lanes(manifest, None, replicas=replicas, threads=threads) == expected


def test_lanes_that_do_not_fit_are_refused_with_the_number_that_would(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(monkeypatch, manifest, 12.5)
    assert choose_lanes(manifest, 12, replicas=1, threads=1) == 12
    with pytest.raises(ValueError, match=r"13 lanes need up to .* at most --lanes 12 would fit"):
        choose_lanes(manifest, 13, replicas=1, threads=1)
    with pytest.raises(ValueError, match="at most --lanes 6 would fit"):
        choose_lanes(manifest, 7, replicas=2, threads=1)
    monkeypatch.setattr(lanes, "usable_memory", lambda: None)  # the system does not say
    assert [choose_lanes(manifest, asked, replicas=1, threads=1) for asked in (None, 99)] == [4, 99]


def test_an_engine_without_lanes_has_one(manifest: Manifest, echo_engine: Path) -> None:
    old = without(manifest, "target_lanes")
    assert choose_lanes(old, None, replicas=1, threads=8) == choose_lanes(old, 1, replicas=1, threads=8) == 1
    with pytest.raises(EngineDirError, match="no graphs for several lanes") as refused:
        choose_lanes(old, 2, replicas=1, threads=8)
    assert str(refused.value).endswith(old.rebuild)
    assert choose_lanes(manifest, None, device="cuda", replicas=1, threads=8) == 1
    with pytest.raises(EngineDirError, match="on the CPU only"):
        choose_lanes(manifest, 2, device="cuda", replicas=1, threads=8)
    without_draft = without(read_manifest(echo_engine), "draft_lanes")
    assert choose_lanes(without_draft, None, replicas=1, threads=2) == 1
    assert choose_lanes(without_draft, None, replicas=1, threads=2, draft="ngram") == 8


def test_the_start_line_says_lanes_and_memory() -> None:
    assert described(1, 8, 95_500_000, 0) == "8 lanes, up to 92 MiB of cache each"
    assert described(1, 1, 1, 16) == "1 lane, up to 1 MiB of cache, 16 MiB of past answers"
    assert described(2, 1, 1, 0) == "2 replicas of 1 lane, up to 1 MiB of cache each"
    assert described(1, 1, 1 << 20, 0) == "1 lane, up to 1 MiB of cache"
