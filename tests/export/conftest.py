"""Fixtures of the tests that export drafts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.draft_cases import DraftCase

LAYERS = 10  # EAGLE-3's usual captured layers are then distinct, whichever way their ids are written


@pytest.fixture(scope="session")
def ten_layer_target(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Directory and model of a tiny target. Tests do not change it."""
    from tests.support.tiny import write_checkpoint

    path = tmp_path_factory.mktemp("target") / "tiny"
    return path, write_checkpoint(path, num_hidden_layers=LAYERS)


@pytest.fixture
def case(ten_layer_target: tuple[Path, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> DraftCase:
    """The target and an empty place for a draft."""
    from tests.support.draft_cases import DraftCase

    return DraftCase(*ten_layer_target, tmp_path / "draft", tmp_path / "engines", capfd)
