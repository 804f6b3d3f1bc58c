"""Both forms of a packed draft give the exporter the same graphs and weights, which it checks against numpy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.cli import command
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from tests.support.training import packed, random_draft


@pytest.mark.parametrize("norms", [False, True])
def test_forms_are_exported_to_the_same_graphs(tmp_path: Path, target: HuggingFaceCheckpoint, norms: bool) -> None:
    draft, exported = random_draft(target.arch, norms=norms), []
    for form, layer in (("specforge", "midlayer."), ("speculators", "layers.0.")):
        directory = packed(draft, tmp_path / form, form)
        with safe_open(directory / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert names == {name.replace("midlayer.", layer) for name in draft.state_dict()} | {"d2t", "t2d"}
        config = json.loads((directory / "config.json").read_text())
        assert (config["fc_norm"], config["norm_output"]) == (norms, norms)
        options = ["--weights", target.path, "--draft-weights", directory, "--out", tmp_path / "engines", "--name", form]
        options += ["--precision", "fp32", "--draft-precision", "fp32", "--max-context", "64"]
        assert run_command(command, "resps-export", list(map(str, options))) == 0
        exported.append(load_manifest(tmp_path / "engines" / form).files)
    first, second = exported
    for name in ("fuse.onnx", "draft.onnx", "draft.data", "expand.onnx", "tree.onnx"):
        assert first[name] == second[name], name
