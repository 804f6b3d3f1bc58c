"""The resps-export command with input that it refuses: one line of error, and nothing is written or overwritten."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import export.build
import export.cli
import export.directory.install
import export.parity.target
from export.checkpoints.models import MODELS, ModelEntry
from export.cli import command
from export.errors import CheckpointError
from export.parity.reference import reference_logits
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from tests.support.ended import Ended
from tests.support.exporting import Run, expect_engine, names_in, snapshot


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"manifest.json": '{"name": "a web page"}', "icon.png": "x"}])
def test_directory_that_is_no_engine_is_not_overwritten(run: Run, engines: Path, content: Mapping[str, str]) -> None:
    (engines / "tiny").mkdir(parents=True)
    for name, text in content.items():
        (engines / "tiny" / name).write_text(text)
    before = snapshot(engines)
    for arguments in ([], ["--force"]):
        ended = run(*arguments)
        assert ended.code == 1
        assert "exists and is not an engine directory — move it away" in ended.complaint
    assert snapshot(engines) == before


def test_file_in_the_way_is_not_overwritten_but_an_empty_directory_is_used(run: Run, engines: Path) -> None:
    engines.mkdir()
    (engines / "tiny").write_text("mine")
    assert "exists and is not an engine directory" in run("--force").complaint
    assert (engines / "tiny").read_text() == "mine"
    (engines / "tiny").unlink()
    (engines / "tiny").mkdir()
    assert run().code == 0
    expect_engine(engines / "tiny")


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_out_that_is_no_folder(run: Run, source: Path, engines: Path, below: str) -> None:
    for make in (lambda: engines.write_text("mine"), lambda: engines.symlink_to("nothing")):
        make()
        for arguments in ([], ["--dry-run"]):
            ended = run("--out", str(engines / below), *arguments)
            assert ended.code == 1
            assert ended.complaint == (
                f"resps-export: {engines} is not a folder, so engine directories cannot be below it — choose another --out"
            )
        engines.unlink()


def test_dry_run_refuses_the_weights_that_an_export_refuses(run: Run, source: Path, engines: Path) -> None:
    """With the same line: quantization that cannot be read, a surplus tensor, a missing one, a pointer."""
    tensors, config = load_file(source / "model.safetensors"), (source / "config.json").read_text()

    def weights(changed: dict[str, np.ndarray]) -> None:
        (source / "config.json").write_text(config)
        save_file(changed, source / "model.safetensors", metadata={"format": "pt"})

    lines = []
    for change in (
        lambda: (source / "config.json").write_text(json.dumps({**json.loads(config), "quantization_config": {"quant_method": "hqq"}})),
        lambda: weights({**tensors, "model.layers.0.mlp.up_proj.bias": np.ones(96, np.float32)}),
        lambda: weights({name: tensor for name, tensor in tensors.items() if "norm" not in name}),
        lambda: (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
    ):
        change()
        ended, dry = run(), run("--dry-run")
        assert (ended.code, dry.code, ended.complaint) == (1, 1, dry.complaint)
        lines.append(ended.complaint)
    for line, part in zip(lines, ("'hqq', which cannot be read", "up_proj.bias, which", "lacks model.", "is a Git LFS"), strict=True):
        assert part in line
    assert not engines.exists()


def test_how_the_head_was_read_is_said(run: Run, source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert "weights: the stored lm_head.weight is used, as transformers does" in run("--dry-run").err


def test_weights_that_overflow_float32_are_not_blamed_on_the_precision(run: Run, source: Path, engines: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][:] = 3e38
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert "tiny itself gives logits that are not finite in float32 — its weights are damaged" in run().complaint
    assert names_in(engines) == set()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_weights_that_are_not_finite_are_named_in_every_precision(run: Run, source: Path, engines: Path, precision: str) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.3.self_attn.v_proj.weight"][1, 2] = np.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    ended = run("--precision", precision)
    assert ended.code == CheckpointError.exit_code
    assert "model.safetensors has numbers in model.layers.3.self_attn.v_proj.weight that are not finite" in ended.complaint
    assert "choose another --precision" not in ended.complaint
    assert names_in(engines) == set()


def test_too_small_a_disk_is_noticed_first(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 << 30, (10 << 30) - (3 << 20), 3 << 20))
    ended = run()
    assert ended.code == 1
    assert f"{engines} has 3 MiB free, the export needs" in ended.complaint
    assert names_in(engines) == set()


def test_unknown_model_lists_the_known_ones(run: Run, engines: Path) -> None:
    ended = run("--model", "llama-9000")
    assert ended.code == 2
    assert "unknown model 'llama-9000' — choose from " in ended.complaint
    assert all(name in ended.complaint for name in MODELS)
    assert not engines.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model"],
        ["--weights", "x", "--precision", "int3"],
        ["--weights", "x", "--max-context", "1"],
        ["--weights", "x", "--depth"],
        ["--weights", "x", "--no-rotation"],
        ["--weights", "x", "--rounding", "feedback", "--precision", "int4"],
    ],
)
def test_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = run_command(command, "resps-export", arguments)
    ended = Ended(code, *capfd.readouterr())
    assert (ended.code, ended.out) == (2, "")
    assert ended.complaint.endswith("see resps-export --help")
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("name", ["../tiny", "a/b", ".hidden", ".."])
def test_names_that_lead_elsewhere_are_refused(run: Run, engines: Path, name: str) -> None:
    ended = run("--name", name)
    assert ended.code == 2
    assert "--name must be a plain directory name" in ended.complaint
    assert not engines.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("two\nlines", r"must be without line breaks and control characters, not 'two\nlines'"),
        ("\u2028", r"must be without line breaks and control characters, not '\u2028'"),
        ("red\x1b[31m", r"must be without line breaks and control characters, not 'red\x1b[31m'"),
        ("é" * 101, "must have at most 200 bytes, not 202"),
    ],
    ids=["line break", "Unicode line break", "escape", "long"],
)
def test_names_that_no_line_or_file_system_holds_are_refused(run: Run, engines: Path, name: str, says: str) -> None:
    for arguments in ([], ["--dry-run"]):
        ended = run("--name", name, *arguments)
        assert ended.code == 2
        assert f"--name {says}" in ended.complaint
        assert not engines.exists()


def test_hub_out_of_reach(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    ended = run("--weights", "owner/model")
    assert ended.code == 1
    assert "cannot download owner/model from the hub: no route — " in ended.complaint
    assert not engines.exists()


def test_model_name_goes_to_its_repository(source: Path, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, **_: Any) -> str:
        asked.append(repository)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setitem(MODELS, "small", ModelEntry("owner/small", None))
    assert run_command(command, "resps-export", ["--model", "small", "--out", str(engines)]) == 0
    assert asked == ["owner/small"]
    assert load_manifest(engines / "small").model == "small"


def test_unsupported_architecture(run: Run, source: Path, engines: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    for change, message in (({"model_type": "gemma3"}, "architecture 'gemma3'"), ({"mlp_bias": True}, "only SwiGLU without bias")):
        (source / "config.json").write_text(json.dumps({**config, **change}))
        for arguments in ([], ["--dry-run"]):
            ended = run(*arguments)
            assert ended.code == 1
            assert message in ended.complaint
    assert not engines.exists()


def test_incomplete_checkpoint(run: Run, source: Path, engines: Path) -> None:
    for name, message in (("tokenizer.json", "has no tokenizer.json — "), ("model.safetensors", "holds no weights")):
        (source / name).unlink()
        ended = run()
        assert ended.code == CheckpointError.exit_code
        assert message in ended.complaint
        assert names_in(engines) == set()


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 0.01), ("int4", 10.0)])
def test_export_that_differs_from_its_checkpoint_is_thrown_away(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, precision: str, noise: float
) -> None:
    random = np.random.default_rng(0)

    def disturbed(*arguments: Any) -> np.ndarray:
        logits = reference_logits(*arguments)
        return logits + noise * random.standard_normal(logits.shape, np.float32)

    monkeypatch.setattr(export.parity.target, "reference_logits", disturbed)
    ended = run("--precision", precision)
    assert ended.code == 1
    assert "the exported target differs from the checkpoint: max |logit difference|" in ended.complaint
    assert names_in(engines) == set()


def test_weights_too_large_for_half_precision_are_noticed(run: Run, source: Path, engines: Path) -> None:
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.down_proj.weight"] = tensors["model.layers.2.mlp.down_proj.weight"] * np.float32(1e6)
    save_file(tensors, file, metadata={"format": "pt"})
    ended = run("--precision", "fp16")
    assert ended.code == 1
    assert "layers.2.down.weight has numbers that are not finite in float16 — choose another --precision" in ended.complaint
    assert names_in(engines) == set()
    assert run("--precision", "bf16").code == 0


@pytest.mark.parametrize("arguments", [[], ["--force"]], ids=["without force", "force"])
def test_foreign_files_in_an_engine_are_kept(run: Run, engines: Path, arguments: list[str]) -> None:
    assert run().code == 0
    (engines / "tiny" / "data").mkdir()
    (engines / "tiny" / "data" / "x").write_text("mine")
    load_manifest(engines / "tiny")  # remembers the hashes there
    before = snapshot(engines / "tiny")
    ended = run("--prefill-rows", "32", *arguments)
    assert ended.code == 1
    assert f"{engines / 'tiny'} also holds files that are not the engine's: data — move them away" in ended.complaint
    assert snapshot(engines / "tiny") == before


def test_dry_run_refuses_the_directories_that_an_export_refuses(run: Run, engines: Path) -> None:
    (engines / "tiny").mkdir(parents=True)
    (engines / "tiny" / "notes.txt").write_text("mine")
    ended, dry = run(), run("--dry-run")
    assert (ended.code, dry.code, ended.complaint) == (1, 1, dry.complaint)


def test_dry_run_needs_no_place_to_write(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines.mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: not mode & os.W_OK)
    assert "cannot be written to" in run().complaint
    assert run("--dry-run").code == 0


def test_int8_is_refused_on_a_processor_with_another_order(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.build, "adds_in_order", lambda: False)
    ended = run("--precision", "int8")
    assert (ended.code, names_in(engines)) == (1, set())
    assert "do not sum in a fixed order" in ended.err
    assert "use --precision fp32 or bf16" in ended.err
    assert run().code == 0
