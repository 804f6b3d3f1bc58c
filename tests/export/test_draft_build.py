"""resps-export with a draft: options, dry run, manifest entry, and detection of an outdated engine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import pytest

from export.cli import command
from export.graphs.precision import PRECISIONS
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from tests.support.draft_cases import DraftCase


def test_contradictory_options_are_usage_errors(case: DraftCase) -> None:
    case.write()
    for arguments, draft, message in (
        (["--draft-precision", "fp16"], False, "--draft-precision needs a draft"),
        (["--draft-precision", "fp16", "--dry-run"], False, "--draft-precision needs a draft"),
        (["--no-draft"], True, "--no-draft goes with none of"),
        (["--no-draft", "--draft-precision", "fp16"], False, "--no-draft goes with none of"),
        (["--draft-precision", "fp8"], True, "fp8"),
    ):
        ended = case.run(*arguments, draft=draft)
        assert ended.code == 2
        assert message in ended.complaint
    assert not case.engines.exists()


def test_dry_run_shows_the_draft(case: DraftCase) -> None:
    case.write("eagle", config={"num_hidden_layers": 40})
    ended = case.run("--dry-run")
    assert ended.code == 0
    assert "draft.onnx, draft.data" in ended.out
    assert "of draft in int8" in ended.out
    plan = json.loads(case.run("--dry-run", "--json").out)
    assert (plan["draft"], plan["draft_precision"]) == ("draft", "int8")
    assert json.loads(case.run("--dry-run", "--json", "--precision", "bf16").out)["draft_precision"] == "bf16"
    without_draft = json.loads(case.run("--dry-run", "--json", "--no-draft", draft=False).out)
    assert (without_draft["draft"], without_draft["draft_precision"], without_draft["draft_bytes"]) == (None, None, 0)
    assert without_draft["disk_bytes"] == plan["disk_bytes"] - plan["draft_bytes"]
    assert not case.engines.exists()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("switches", [{}, {"hidden": 32, "embedding": "own", "captured": 3, "vocab": 64}], ids=["shared", "narrower"])
def test_manifest_and_size_of_the_draft(case: DraftCase, switches: Mapping[str, Any], precision: str) -> None:
    draft = case.write("eagle", **switches)
    assert case.run("--draft-precision", precision).code == 0
    directory = case.engines / "tiny"
    manifest = load_manifest(directory)
    draft_entry = manifest.draft
    assert draft_entry is not None
    assert (draft_entry.name, draft_entry.precision, draft_entry.layers) == ("draft", precision, 1)
    assert (draft_entry.hidden, draft_entry.vocab, draft_entry.trained_length) == (draft.head.shape[1], len(draft.tokens), 2048)
    assert (draft_entry.check.rows, draft_entry.capacity % 64) == (8, 0)
    assert {"fuse.onnx", "draft.onnx", "draft.data", "expand.onnx", "tree.onnx"} <= manifest.files.keys()
    stored = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for name in ("fuse", "draft")
        for tensor in onnx.load(directory / f"{name}.onnx", load_external_data=False).graph.initializer
        if tensor.external_data
    }
    assert {name for name, entry in stored.items() if entry["location"] == "target.data"} == (
        set() if switches else {"model.embed_tokens.weight"}
    )
    plan = json.loads(case.run("--draft-precision", precision, "--dry-run", "--json").out)
    assert plan["draft_bytes"] == (directory / "draft.data").stat().st_size


def change_weights(case: DraftCase) -> None:
    case.write(seed=1)


def change_config(case: DraftCase) -> None:
    case.write(config={"rope_theta": 1e6})


@pytest.mark.parametrize("change", [change_weights, change_config])
def test_changed_draft_is_exported_again(case: DraftCase, change: Callable[[DraftCase], None]) -> None:
    case.write()
    assert "is ready" in case.run().out
    before = load_manifest(case.engines / "tiny")
    assert "up to date" in case.run().out
    change(case)
    assert "is ready" in case.run().out
    after = load_manifest(case.engines / "tiny")
    assert after.files["draft.data"] != before.files["draft.data"]
    assert after.files["target.data"] == before.files["target.data"]
    assert "up to date" in case.run().out


def test_other_draft_options_export_again_and_rebuild_repeats_them(case: DraftCase) -> None:
    case.write()
    directory = case.engines / "tiny"
    assert "is ready" in case.run("--draft-precision", "fp32").out
    first = load_manifest(directory)
    assert shlex.split(first.rebuild)[:7] == [
        *("resps-export", "--weights", str(case.target), "--draft-weights", str(case.draft), "--draft-precision", "fp32")
    ]
    assert run_command(command, "resps-export", shlex.split(first.rebuild)[1:]) == 0
    assert load_manifest(directory) == first
    assert "is ready" in case.run().out
    assert "draft-precision" not in load_manifest(directory).rebuild
    assert "is ready" in case.run("--no-draft", draft=False).out
    without_draft = load_manifest(directory)
    assert without_draft.draft is None
    assert "--no-draft" in without_draft.rebuild
    assert not {"draft", "fuse", "expand", "tree"} & without_draft.graphs.keys()
    assert "draft.data" not in without_draft.files
    assert "up to date" in case.run(draft=False).out
