"""The engine directory that the tuning tests change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from policy import TreeSpec


@pytest.fixture
def engine_dir(echo_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny engine, with settings for a quick tuning: few prompts, short answers, small trees and a cache of its own."""
    import export.tuning.cli
    import export.tuning.load.simulate
    import export.tuning.replay.grid
    import export.tuning.replay.record
    import export.tuning.tune

    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(export.tuning.replay.record, "MIN_PROMPTS", 3)
    monkeypatch.setattr(export.tuning.tune, "MIN_PROMPTS", 3)
    monkeypatch.setattr(export.tuning.tune, "MIN_RUN_SECONDS", 0.1)
    monkeypatch.setattr(export.tuning.cli, "TRAINING", 0.15)
    grid = export.tuning.replay.grid.TreeGrid(widths=(1, 2), depths=(1, 2, 3), max_nodes=6, new_tokens=20)
    monkeypatch.setattr(export.tuning.replay.grid, "grid_for", lambda _: grid)
    monkeypatch.setattr(export.tuning.load.simulate, "GRID", grid)
    monkeypatch.setattr(export.tuning.load.simulate, "PAPERS_TREE", TreeSpec(6, 3, 2))
    (tmp_path / "prompts.txt").write_text("".join(f"the quick brown fox {number}\n" for number in range(9)))
    return Path(shutil.copytree(echo_engine, tmp_path / "engine"))
