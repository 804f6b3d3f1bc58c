"""Re-SpS' text state in service: how it comes into an engine directory, and what is refused there."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.tuning.cli
import export.tuning.texts
from export.checkpoints import fetch
from export.tuning.cli import command
from export.tuning.install import install
from export.tuning.learning.trained import Trained
from export.tuning.minilm import MINILM
from export.tuning.replay.grid import TreeGrid
from export.tuning.replay.simulation import replay
from export.tuning.replay.traces import trace
from export.tuning.texts import Texts
from policy import Watchdog
from runtime import Decoder, EngineDirError, SamplingParams
from runtime.console import run_command
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from tests.support.eagle_engines import prompt_of
from tests.support.tiny_encoder import WIDTH
from tests.support.tunings import SLOW, SURFACE, a_tuning, net


@pytest.fixture
def tiny(echo_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(echo_engine, tmp_path / "engine"))


def reading(texts: Texts) -> Trained:
    return dataclasses.replace(SLOW, slow=net(WIDTH, 3, seed=4), state="text", texts=texts)


def test_installed_it_decides_as_it_replayed_and_changes_no_token(tiny: Path, eagle_decoder: Decoder, texts: Texts) -> None:
    trained = {"resps-text": reading(texts), "resps": SLOW}
    installed = install(tiny, load_manifest(tiny), a_tuning(tiny, trained, policy="resps-text")).tuning
    assert installed is not None
    assert installed.encoder is not None
    assert set(texts.written.files) < set(installed.files) == {path.name for path in tiny.glob("tuned-*")}
    answer = eagle_decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=90)).tokens
    traces = {width: trace(eagle_decoder, "x", prompt_of(20), answer, 4, width) for width in (1, 2, 3)}
    found = replay(trained["resps-text"].policy(), [traces], SURFACE)
    with Decoder(tiny, draft="eagle", threads=2) as tuned:
        policy = tuned.policy()
        assert isinstance(policy, Watchdog)
        stats = tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy=policy.policy).stats
        assert (found.cycles, found.tokens) == (stats.cycles, stats.new_tokens - 1)
        assert (
            tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90)).tokens
            == tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy="none").tokens
        )
        sampling = SamplingParams(temperature=0.9, seed=5)
        arms = [tuned.generate(prompt_of(20), replace(sampling, max_new_tokens=50), policy=name).tokens for name in ("none", "resps-text")]
        assert arms[0] == arms[1]
    again = install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps": SLOW}, policy="resps")).tuning
    assert again is not None
    assert again.encoder is None
    assert {path.name for path in tiny.glob("tuned-*")} == set(again.files)  # where nobody reads there is no encoder


def test_embeddings_that_are_no_numbers_pin_the_fixed_tree(tiny: Path, texts: Texts) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps-text": reading(texts)}, policy="resps-text"))
    with Decoder(tiny, draft="eagle", threads=2) as tuned:
        policy = tuned.policy()
        assert isinstance(policy, Watchdog)
        policy.policy.policy._see = lambda _: np.full(WIDTH, np.nan, np.float32)  # type: ignore[attr-defined]
        plain = tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=40), policy="none").tokens
        assert tuned.generate(prompt_of(20), SamplingParams(max_new_tokens=40)).tokens == plain
        assert "logits are not finite" in str(policy.pinned)


def edited(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = directory / FILE_NAME
    manifest = json.loads(file.read_text())
    change(manifest["tuning"])
    file.write_text(json.dumps(manifest))


TROUBLES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "none": (lambda t: t.update(encoder=None), r"resps-text reads text, and manifest\.tuning has no encoder"),
    "graph": (lambda t: t["graphs"].pop("encoder"), r"manifest\.tuning\.graphs lacks the encoder encoder"),
    "tensors": (lambda t: t["graphs"]["encoder"]["inputs"].pop("mask"), r"lacks the encoder encoder"),
    "hash": (lambda t: t["files"].pop(t["encoder"]["tokenizer"]), r"names 'tuned-encoder-\w+\.json' without its hash"),
    "pieces": (lambda t: t["encoder"].update(pieces=2), "encoder reads 2 word pieces"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_encoder_that_does_not_fit_is_refused(tiny: Path, texts: Texts, trouble: str) -> None:
    change, says = TROUBLES[trouble]
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps-text": reading(texts)}))
    edited(tiny, change)
    with pytest.raises(EngineDirError, match=says):
        Decoder(tiny)


@pytest.mark.parametrize("which", ["onnx", "data", "json"])
def test_an_encoder_that_changed_or_is_missing_is_refused(tiny: Path, texts: Texts, which: str) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps-text": reading(texts)}))
    (file,) = tiny.glob(f"tuned-encoder-*.{which}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(EngineDirError, match=rf"{file.name} was changed after the tuning — tune again: resps-tune --engine-dir"):
        Decoder(tiny)
    file.unlink()
    with pytest.raises(EngineDirError, match=rf"lacks {file.name} — tune again"):
        Decoder(tiny)


def test_a_tuning_from_before_there_were_encoders_loads(tiny: Path) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps": SLOW}))
    edited(tiny, lambda tuning: tuning.pop("encoder"))
    tuning = load_manifest(tiny).tuning
    assert tuning is not None
    assert tuning.encoder is None


# The command


def tune(directory: Path, *more: str) -> int:
    prompts = directory.parent / "prompts.txt"
    prompts.write_text("".join(f"the quick brown fox {number}\n" for number in range(9)))
    arguments = ["--engine-dir", str(directory), "--prompts", str(prompts), "--minutes", "0.1", "--threads", "2", *more]
    return run_command(command, "resps-tune", arguments)


@pytest.fixture
def hurried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts, short answers, a cache of its own."""
    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("export.tuning.replay.record.LEAST_PROMPTS", 3)
    monkeypatch.setattr("export.tuning.tune.LEAST_PROMPTS", 3)
    monkeypatch.setattr("export.tuning.tune.LEAST_TURN", 0.1)
    grid = TreeGrid(widths=(1, 2), depths=(1, 2, 3), nodes=6, new_tokens=20)
    monkeypatch.setattr("export.tuning.replay.grid.grid_for", lambda _: grid)


@pytest.mark.usefixtures("hurried")
def test_resps_tune_trains_confirms_and_installs_it(tiny: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.tuning.texts, "packaged_encoder", lambda: bert)
    monkeypatch.setattr(
        "export.tuning.replay.simulation.latency.measure", lambda *_, **__: SURFACE
    )  # which takes the most time, and has its own tests
    assert tune(tiny, "--policy", "resps-text") == 0
    tuning = load_manifest(tiny).tuning
    assert tuning is not None
    assert set(tuning.learned) == {"resps-text"}
    assert "resps-text" in tuning.ratios
    slow = tuning.learned["resps-text"].slow
    assert slow is not None
    assert (slow.state, tuning.graphs["resps-text.slow"].inputs["x"].shape) == ("text", (1, WIDTH))
    with Decoder(tiny, threads=2) as decoder:
        plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60), policy="none").tokens
        assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60), policy="resps-text").tokens == plain


@pytest.mark.usefixtures("hurried")
def test_offline_it_is_left_out_unless_it_was_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def pip(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to host\n")

    names: list[tuple[str, ...]] = []

    def interrupted(decoder: Any, asked: Any, minutes: Any, learned: tuple[str, ...], *_: Any) -> None:
        names.append(learned)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    monkeypatch.setattr(export.tuning.cli, "_tuned", interrupted)
    why = f"cannot download {MINILM.requirement}: ERROR: no route to host — check the connection to the Python package index and try again"
    assert tune(tiny, "--policy", "resps-text") == 1
    assert capfd.readouterr().err == f"resps-tune: {why}\n"
    assert names == []
    assert tune(tiny, "--policy", "all") == 130
    assert caplog.messages == [f"resps-text is left out: {why}"]
    assert len(names[0]) == 8
    assert "resps-text" not in names[0]
    assert tune(tiny) == 130  # nobody asked: nothing is fetched
    assert names[1] == ("resps", "ltd", "resps+ltd")
