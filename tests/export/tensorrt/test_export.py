"""resps-export --backend tensorrt on tiny models: files, manifest and plan of a finished export."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.cli import command
from export.errors import EngineBuildError
from runtime.console import run_command
from runtime.manifest.graphs import FILE_NAME, sha256_of
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from tests.support.tensorrt_exports import GRAPHS, LAYERS, SIZES, Run, TinyModels, expect_caches_updated_in_place, export_to

trt = pytest.importorskip("tensorrt_rtx")
FILES = {
    *("manifest.json", "tokenizer.json", "chat_template.jinja", "target.data", "draft.data"),
    *(f"{name}.{kind}" for name in GRAPHS for kind in ("onnx", "plan")),
}


def test_directory_is_complete_and_describes_itself(engine: Path, manifest: Manifest) -> None:
    assert engine.name == "tiny-trt"
    assert {path.name for path in engine.iterdir()} == FILES
    assert set(manifest.files) == FILES - {FILE_NAME}
    assert (manifest.backend, manifest.precision, manifest.tree_sizes) == ("tensorrt", "fp16", SIZES)
    assert manifest.tensorrt is not None
    assert (manifest.tensorrt.flavour, manifest.tensorrt.version) == ("tensorrt_rtx", trt.__version__)
    assert (manifest.tensorrt.compute_capabilities, manifest.tensorrt.gpu) == (("8.9", "12.0"), None)
    assert manifest.built_with["tensorrt_rtx"] == trt.__version__
    assert (manifest.limits.span_step, manifest.limits.tree_nodes, manifest.limits.capacity) == (256, 16, 128)
    assert manifest.draft is not None
    assert manifest.draft.precision == "fp16"
    for name, graph in manifest.graphs.items():
        assert (graph.file, graph.plan) == (f"{name}.onnx", f"{name}.plan")
        assert manifest.files[f"{name}.plan"].sha256 == sha256_of(engine / f"{name}.plan")
        onnx.checker.check_model(str(engine / graph.file))
    counts = {name: len(graph.profiles) for name, graph in manifest.graphs.items()}
    assert counts == {"target": 6, "sample": 2, "fuse": 2, "draft": 6, "expand": 2, "tree": 1}
    assert manifest.graphs["target"].inputs["past.0.key"].shape == (1, 2, 128, 16)
    assert manifest.graphs["target"].outputs["present.0.key"].dtype == "float16"
    words = shlex.split(manifest.rebuild)
    assert words[words.index("--backend") + 1] == "tensorrt"
    assert words[words.index("--tree-sizes") + 1] == "1,2,4,8,16"
    assert words[-1] == "--force"


def test_every_cache_tensor_is_updated_in_place(engine: Path) -> None:
    expect_caches_updated_in_place(engine, LAYERS)


def test_polygraphy_reads_the_target(engine: Path) -> None:
    pytest.importorskip("polygraphy")
    line = [str(Path(sys.executable).with_name("polygraphy")), "inspect", "model", str(engine / "target.onnx")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "Name: target | ONNX Opset: 24" in done.stdout
    assert "past.5.value [dtype=float16, shape=(1, 2, 128, 16)]" in done.stdout


def test_second_run_is_up_to_date_until_the_gpus_change(source: TinyModels, engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (engine / FILE_NAME).stat().st_ino
    line = shlex.split(load_manifest(engine).rebuild)[1:-1]
    assert run_command(command, "resps-export", line) == 0
    assert capfd.readouterr().out == f"{engine} is up to date\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.build.export", lambda job: pytest.fail(f"wanted {job.platform.capabilities}"))
        with pytest.raises(pytest.fail.Exception, match=r"8\.6"):
            command.main([*line, "--compute-capability", "8.6"], standalone_mode=False)
    assert (engine / FILE_NAME).stat().st_ino == before


def test_dry_run_plans_the_right_sizes(source: TinyModels, engine: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = ["--weights", str(source.target), "--out", str(tmp_path), "--backend", "tensorrt", "--max-context", "64", "--dry-run"]
    assert run_command(command, "resps-export", [*line, "--tree-sizes", ",".join(map(str, SIZES))]) == 0
    out = capfd.readouterr().out
    assert "KV cache; scratch memory is known once the plans are built" in out
    assert "tree sizes 1, 2, 4, 8, 16 rows" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [["--tree-sizes", "1", "--prefill-rows", "1"], ["--tree-sizes", "512,3", "--max-context", "100"]])
def test_extreme_sizes_build(source: TinyModels, tmp_path: Path, more: list[str]) -> None:
    manifest = load_manifest(export_to(tmp_path / "e", source, "--compute-capability", "12.0", *more))
    assert all(graph.profiles for graph in manifest.graphs.values())


def test_failed_build_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise EngineBuildError("tensorrt_rtx cannot build target.onnx: no kernel — choose another --precision")

    monkeypatch.setattr("export.tensorrt.plans.build_plan", refuse)
    ended = run()
    assert (ended.code, "no kernel" in ended.complaint) == (1, True)
    assert not list((tmp_path / "e").iterdir())
