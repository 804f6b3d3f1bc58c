"""resps-export --backend tensorrt --lanes: graphs and plans for several requests in a pass, beside those for one."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

import export.build
import export.draft_build
from export.cli import command
from export.tensorrt.profiles import draft_lanes_profiles, target_lanes_profiles
from runtime.backends.cuda.backend import _weight_and_cache_bytes
from runtime.console import run_command
from runtime.errors import EngineDirError
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Limits, Manifest
from tests.support.exporting import names_in
from tests.support.tensorrt_exports import LANES, LAYERS, SIZES, Run, TinyModels, expect_caches_updated_in_place, export_to, unbuilt

pytest.importorskip("tensorrt_rtx")
GRAPHS = ("target_lanes", "draft_lanes")
FILES = {"target.lanes.onnx", "draft.lanes.onnx", "target_lanes.plan", "draft_lanes.plan"}


@pytest.fixture(scope="module")
def with_lanes(lanes_engine: Path) -> Manifest:
    return load_manifest(lanes_engine)


def test_plans_for_lanes_are_beside_those_for_one(lanes_engine: Path, with_lanes: Manifest, engine: Path, manifest: Manifest) -> None:
    assert names_in(lanes_engine) == names_in(engine) | FILES
    assert with_lanes.tensorrt is not None
    assert (with_lanes.tensorrt.lanes, with_lanes.tensorrt.compute_capabilities) == (LANES, ("8.9", "12.0"))
    assert "--lanes 6" in with_lanes.rebuild
    assert manifest.tensorrt is not None
    assert manifest.tensorrt.lanes == 1
    for name in GRAPHS:
        assert name not in manifest.graphs
        graph = with_lanes.graphs[name]
        assert (graph.file, graph.plan) == (f"{name.replace('_', '.')}.onnx", f"{name}.plan")
        assert graph.inputs["past.0.key"].shape[0] == "B"
        assert (lanes_engine / f"{name}.plan").stat().st_size > 1 << 20
    assert with_lanes.graphs["target_lanes"].page_slots == with_lanes.limits.capacity
    for name, graph in manifest.graphs.items():  # those for one request have the same profiles, but for the longer cache
        assert len(with_lanes.graphs[name].profiles) == len(graph.profiles)


def test_every_cache_tensor_is_updated_in_place(lanes_engine: Path) -> None:
    expect_caches_updated_in_place(lanes_engine, LAYERS, ".lanes")


def test_one_request_needs_no_memory_for_lanes(with_lanes: Manifest) -> None:
    graphs = {name: graph for name, graph in with_lanes.graphs.items() if name not in GRAPHS}
    files = {name: file for name, file in with_lanes.files.items() if name not in FILES}
    without = dataclasses.replace(with_lanes, graphs=graphs, files=files)
    assert _weight_and_cache_bytes(with_lanes) == _weight_and_cache_bytes(without)
    assert _weight_and_cache_bytes(dataclasses.replace(with_lanes, tensorrt=None)) == _weight_and_cache_bytes(
        dataclasses.replace(without, tensorrt=None)
    )


def admits(profiles: tuple[Mapping[str, Any], ...], **sizes: int) -> int | None:
    """The choice of runtime/backends/cuda/tensorrt.py."""
    for index, ranges in enumerate(profiles):
        assert ranges.keys() == sizes.keys()
        if all(low <= sizes[dim] <= high for dim, (low, _, high) in ranges.items()):
            return index
    return None


def test_every_pass_of_the_target_has_a_profile_with_its_rows(with_lanes: Manifest) -> None:
    """Whatever trees the lanes have, and with all pages in the pass."""
    profiles, span = with_lanes.graphs["target_lanes"].profiles, with_lanes.limits.capacity
    assert [profile["N"][1] for profile in profiles] == [1, 2, 4, 8, 16, 32, 64, 128]
    for used, widest in itertools.product(range(1, LANES + 1), SIZES):
        for rows in range(widest + used - 1, min(64, used * widest) + 1):  # each lane has a row at least
            padded = next(each["N"][1] for each in profiles if each["N"][1] >= rows)
            chosen = admits(profiles, N=padded, B=LANES, n=widest, r=padded, span=span)
            assert chosen is not None
            assert profiles[chosen]["N"][1] == padded
    assert admits(profiles, N=128, B=1, n=128, r=1, span=span) == 7
    assert admits(profiles, N=1, B=LANES, n=2, r=1, span=64) == 0
    assert admits(profiles, N=2, B=LANES + 1, n=2, r=2, span=64) is None


def test_every_pass_of_the_draft_has_a_profile(with_lanes: Manifest) -> None:
    draft, profiles = with_lanes.draft, with_lanes.graphs["draft_lanes"].profiles
    assert draft is not None
    for used, width, level in itertools.product(range(1, LANES + 1), (1, 2, 5, 16), (1, draft.max_depth - 1)):
        rows = used * width
        sizes = {"N": rows, "B": LANES, "n": width, "r": rows, "w": 1 + width * level, "k": width, "span": draft.capacity}
        assert admits(profiles, **sizes) is not None, sizes
    for used, committed in itertools.product(range(1, LANES + 1), range(1, draft.max_depth + 2)):
        sizes = {"N": used * committed, "B": LANES, "n": committed, "r": used, "w": committed, "k": draft.max_width, "span": 64}
        assert admits(profiles, **sizes) is not None, sizes
    assert admits(profiles, N=128, B=1, n=128, r=1, w=128, k=16, span=draft.capacity) is not None


@pytest.mark.parametrize(("sizes", "lanes", "prefill"), [((1,), 2, 1), ((3, 512), 2, 4096), ((1, 2), 64, 8), ((60,), 8, 128)])
def test_profiles_ascend_and_none_has_a_single_row_only(sizes: tuple[int, ...], lanes: int, prefill: int, with_lanes: Manifest) -> None:
    assert with_lanes.draft is not None
    limits, draft = Limits(100, 8192, max(sizes), prefill, 256), dataclasses.replace(with_lanes.draft, capacity=8192)
    for width in (1, 16):
        check_ranges(target_lanes_profiles(limits, sizes, lanes), lanes)
        check_ranges(draft_lanes_profiles(limits, dataclasses.replace(draft, max_width=width), lanes), lanes)
    for size in sizes:
        assert admits(target_lanes_profiles(limits, sizes, lanes), N=size, B=1, n=size, r=size, span=64) is not None


def check_ranges(profiles: tuple[Mapping[str, tuple[int, int, int]], ...], lanes: int) -> None:
    for profile in profiles:
        assert all(1 <= low <= best <= high for low, best, high in profile.values()), profile
        assert min(profile["N"][2], profile["n"][2]) > 1
        assert profile["n"][2] <= profile["N"][2]
    rows = [profile["N"][1] for profile in profiles[:-1]]
    assert rows == sorted(set(rows))
    assert {profile["B"][2] for profile in profiles[:-1]} == {lanes}
    assert rows[-1] >= lanes


@pytest.mark.parametrize("more", [["--tree-sizes", "1", "--prefill-rows", "1"], ["--tree-sizes", "70", "--prefill-rows", "200"]])
def test_the_largest_pass_fits_behind_a_full_context(source: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     more: list[str]) -> None:  # fmt: skip
    """Whatever slots a lane has in use: a full context, and in the draft a whole tree."""
    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    found = load_manifest(export_to(tmp_path / "e", source, "--lanes", "3", *more))
    assert found.draft is not None
    drafted = found.draft.max_width * (found.draft.max_depth - 1)
    for name, slots, before in (("target_lanes", found.limits.capacity, 0), ("draft_lanes", found.draft.capacity, drafted)):
        assert found.limits.context + before + max(profile["n"][2] for profile in found.graphs[name].profiles) <= slots


@pytest.mark.parametrize(("precision", "draft_precision"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp8", "fp8"), ("int8", "int8"),
                                                            ("int4", "int4"), ("fp16", "bf16")])  # fmt: skip
def test_every_precision_is_checked(source: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str,
                                    draft_precision: str) -> None:  # fmt: skip
    """Without building plans: the export compares the graphs with lanes with those for one."""
    checked: list[Any] = []
    for module, name in ((export.build, "check_target_lanes"), (export.draft_build, "check_draft_lanes")):
        monkeypatch.setattr(module, name, recorded(getattr(module, name), checked))
    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    directory = export_to(tmp_path / "e", source, "--precision", precision, "--draft-precision", draft_precision, "--lanes", "2")
    assert len(checked) == 2
    assert not [name for name in names_in(directory) if name.startswith("check.")]


def recorded(function: Callable[..., None], calls: list[Any]) -> Callable[..., None]:
    def wrapped(*given: Any) -> None:
        function(*given)
        calls.append(given)

    return wrapped


def other_scale(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Attention" and attribute.name == "scale":
            attribute.f = 1.0


def other_rows(node: onnx.NodeProto) -> None:
    """What attention gives one lane goes to another."""
    if node.op_type == "Gather" and node.input[1] == "flat":
        node.input[1] = "rows"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("change", [other_scale, other_rows])
@pytest.mark.parametrize(("module", "model"), [(export.build, "target"), (export.draft_build, "draft")])
def test_wrong_graph_with_lanes_is_refused(source: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, model: str,
        change: Callable[[onnx.NodeProto], None], precision: str, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    original = getattr(module, f"{model}_lanes")

    def wrong(writer: Any) -> onnx.ModelProto:
        found = original(writer)
        for node in found.graph.node:
            change(node)
        return found

    monkeypatch.setattr(module, f"{model}_lanes", wrong)
    line = ["--weights", str(source.target), "--draft-weights", str(source.draft), "--out", str(tmp_path / "e"), "--backend", "tensorrt"]
    line += ["--max-context", "64", "--precision", precision, "--draft-precision", precision, "--lanes", "2"]
    assert run_command(command, "resps-export", line) == 1
    assert f"the exported {model} with lanes differs from the graph for one lane" in capfd.readouterr().err
    assert not list((tmp_path / "e").iterdir())


def test_dry_run_counts_caches_and_plans_of_all_lanes(source: TinyModels, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ["--weights", str(source.target), "--draft-weights", str(source.draft), "--out", str(tmp_path), "--backend", "tensorrt"]

    def planned(*more: str) -> dict[str, Any]:
        assert run_command(command, "resps-export", [*line, "--dry-run", "--json", *more]) == 0
        return dict(json.loads(capfd.readouterr().out))

    one, several = planned(), planned("--lanes", "8")
    assert several["cache_bytes"] > 8 * one["cache_bytes"]
    assert several["plan_bytes"] > 1.8 * one["plan_bytes"]
    assert several["disk_bytes"] - one["disk_bytes"] >= several["plan_bytes"] - one["plan_bytes"]
    assert run_command(command, "resps-export", [*line, "--dry-run", "--lanes", "8"]) == 0
    assert "target and draft are there twice: for one request, and for up to 8 in a pass" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "onnxruntime", "--lanes", "2"], "--lanes needs --backend tensorrt"),
        (["--lanes", "0"], "0 is not in the range 1<=x<=64"),
        (["--lanes", "65"], "65 is not in the range 1<=x<=64"),
    ],
)
def test_usage_errors(run: Run, arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert (ended.code, message in ended.complaint) == (2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["tensorrt"].update(lanes=1), "manifest.tensorrt.lanes is 1, which does not fit the graphs"),
        (lambda data: data["tensorrt"].update(lanes=7), "target_lanes has profiles that do not fit tensorrt.lanes or the capacity"),
        (lambda data: data["limits"].update(context=100), "target_lanes has profiles that do not fit tensorrt.lanes or the capacity"),
        (lambda data: data["graphs"]["draft_lanes"]["profiles"][0].pop("n"), "draft_lanes has profiles that do not fit"),
        (lambda data: data["graphs"]["target_lanes"]["inputs"]["past.0.key"].update(shape=["B", 2, 128, 16]), "has a cache of shape"),
        (lambda data: data["graphs"]["target_lanes"]["inputs"].pop("pad"), "manifest.graphs.target_lanes is missing or lacks tensors"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    lanes_engine: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    data = json.loads((lanes_engine / "manifest.json").read_text())
    change(data)
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(EngineDirError, match=message):
        load_manifest(tmp_path, verify=False)
