"""Trained policies in exports for TensorRT: a plan of each network, trees of the engine's sizes, and the same answers."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import export.tensorrt.plans
from export.cli import command
from export.directory.bundled_tuning import FILE, write_bundled
from export.tensorrt.builder import build_plan
from export.tuning.install import install
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.manifest.graphs import File, Graph
from runtime.manifest.load import load_manifest
from tests.support.eagle_engines import export as export_engine
from tests.support.eagle_engines import prompt_of, write_echo
from tests.support.ended import Ended
from tests.support.gpu.device_draws import DeviceDraws
from tests.support.gpu.emulated_tensorrt import EmulatedMachine
from tests.support.tensorrt_exports import unbuilt
from tests.support.tunings import FAST, SLOW, a_tuning

pytest.importorskip("tensorrt_rtx")
HERE = ("--max-context", "250", "--prefill-rows", "16")
DEVICE = (*HERE, "--backend", "tensorrt", "--precision", "fp32", "--draft-precision", "fp32", "--compute-capability", "8.9")
TRAINED = {
    "resps": dataclasses.replace(SLOW, actions=((1, 0, 0), (5, 3, 2), (16, 4, 4))),
    "ltd": dataclasses.replace(FAST, tree=(5, 3, 2), sizes=(1, 2, 5)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft and their tuned engine for the CPU; the draft in "bundled" has its tuning."""
    folder = tmp_path_factory.mktemp("policies")
    write_echo(folder / "target", folder / "draft")
    engine = export_engine(folder / "target", folder / "draft", folder, *HERE)
    install(engine, load_manifest(engine), a_tuning(engine, TRAINED, policy="ltd", machine="another"))
    tuning = load_manifest(engine).tuning
    assert tuning is not None
    shutil.copytree(folder / "draft", folder / "bundled")
    write_bundled(folder / "bundled", "fp32", tuning, engine)
    return folder


@pytest.fixture(autouse=True)
def only_networks_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(directory: Path, graph: Graph, *more: Any) -> File:
        return (build_plan if graph.file.startswith("tuned-") else unbuilt)(directory, graph, *more)

    monkeypatch.setattr(export.tensorrt.plans, "build_plan", build)


@pytest.mark.parametrize("source", ["given", "bundled"])
def test_its_networks_have_plans_and_change_no_token(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    more = ("--policy", str(made / "engine")) if source == "given" else ()
    directory = export_engine(
        made / "target", made / ("draft" if more else "bundled"), tmp_path, *DEVICE, "--tree-sizes", "1,2,5,16", *more
    )
    tuning, trained = load_manifest(directory).tuning, load_manifest(made / "engine").tuning
    assert tuning is not None
    assert trained is not None
    assert (tuning.portable, tuning.policy, set(tuning.learned)) == (True, "ltd", set(TRAINED))
    for name, graph in tuning.graphs.items():
        assert graph.plan is not None
        assert (directory / graph.plan).stat().st_size > 1 << 14
        assert graph.profiles == ({},)
        assert tuning.files[graph.file] == trained.files[trained.graphs[name].file]
    assert set(tuning.files) == {path.name for path in directory.glob("tuned-*")}
    monkeypatch.setattr("runtime.decoding.gumbel.GumbelMaxSampler", DeviceDraws)
    place = EmulatedMachine(directory, monkeypatch)
    with Decoder(directory) as decoder:
        plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40), policy="none").tokens
        for name in (None, "resps", "ltd", "cost-model"):
            assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=40), policy=name).tokens == plain
    ran = {engine.file.name for engine in place.trt.engines if engine.file.name.startswith("tuned") and engine.contexts}
    assert ran == {graph.file for graph in tuning.graphs.values()}


def test_the_one_of_the_draft_is_left_out_where_its_trees_have_no_profile(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        directory = export_engine(made / "target", made / "bundled", tmp_path, *DEVICE, "--tree-sizes", "1,2,4,16")
    why = "it has trees of 5 nodes, the engine is built for trees of 1,2,4,16"
    file = made / "bundled" / "tuning" / "fp32" / FILE
    assert caplog.messages == [f"{file} is not used: {why} — tune this engine: resps-tune --engine-dir DIR"]
    assert load_manifest(directory).tuning is None
    assert not list(directory.glob("tuned-*"))


def test_the_given_one_is_refused_where_its_trees_have_no_profile(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ["--weights", str(made / "target"), "--draft-weights", str(made / "draft"), "--out", str(tmp_path / "e"), *DEVICE]
    ended = Ended(run_command(command, "resps-export", [*line, "--policy", str(made / "engine")]), *capfd.readouterr())
    assert ended.code == 2
    assert "does not fit this export: it has trees of 5 nodes, the engine is built for trees of 1,2,4,8,16,32,64" in ended.complaint
    assert not (tmp_path / "e").exists()


def test_without_a_tuning_there_is_no_policy_network(made: Path, tmp_path: Path) -> None:
    directory = export_engine(made / "target", made / "draft", tmp_path, *DEVICE, "--tree-sizes", "1,4")
    assert load_manifest(directory).tuning is None
    assert not [path.name for path in directory.iterdir() if path.name.startswith(("policy", "tuned-"))]
