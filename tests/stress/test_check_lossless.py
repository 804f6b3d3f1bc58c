"""Short runs of tests/stress/check_lossless.py: its baseline, and that it reports a difference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export.tuning.install import install
from policy import GrowthPolicy, TreeSpec
from runtime.console import run_command
from runtime.decoding.tree import Tree
from runtime.manifest.load import load_manifest
from tests.stress import check_lossless
from tests.support.planted import DummyRowDrafter, PlantedDrafter
from tests.support.tunings import a_tuning

QUICK = ["--prompts", "2", "--new-tokens", "8", "--threads", "1"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_lossless, "PROMPTS", ("the cat sat", "a dog and the cat"))
    monkeypatch.setattr(check_lossless, "SHAPES", (TreeSpec(1, 0, 0), TreeSpec(4, 3, 1), TreeSpec(16, 4, 4)))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("drafter", ["planted", "eagle", "eagle+ngram"])
def test_the_baseline_has_its_dummy_row_whatever_was_tuned(
    echo_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drafter: str
) -> None:
    engine = Path(shutil.copytree(echo_engine, tmp_path / "engine"))
    install(engine, load_manifest(engine), a_tuning(engine, policy="none", threads=1))
    rows: list[int] = []

    class CountingDrafter(DummyRowDrafter):
        def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
            tree = super().draft(root, spec, growth)
            rows.append(len(tree))
            return tree

    monkeypatch.setattr(check_lossless, "DummyRowDrafter", CountingDrafter)
    with pytest.raises(SystemExit) as ended:
        run_command(check_lossless.main, "check_lossless", ["--engine-dir", str(engine), "--drafter", drafter, *QUICK])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tree 1,0,0", "tree 4,3,1", "tree 16,4,4"]
    assert all("0 of 2 answers differ" in line for line in lines)
    assert set(rows) == {2}
    assert len(rows) >= 8


@pytest.mark.usefixtures("few")
def test_a_difference_is_found_and_printed_with_its_margin(
    echo_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class WrongPositions(PlantedDrafter):
        """Rows at positions that are not theirs."""

        def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
            tree = super().draft(root, spec, growth)
            return Tree(tree.tokens, tree.parent, tree.depth + 5, tree.mask)

    monkeypatch.setattr(check_lossless, "PlantedDrafter", WrongPositions)
    with pytest.raises(SystemExit) as ended:
        run_command(check_lossless.main, "check_lossless", ["--engine-dir", str(echo_engine), *QUICK])
    assert ended.value.code == 1
    assert "logit margin" in capsys.readouterr().out
