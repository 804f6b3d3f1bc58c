"""resps-export --backend tensorrt on tiny models: real plans from NVIDIA's own builder, which needs no GPU for TensorRT-RTX."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

import export.cli
import export.parity.target
import export.tensorrt.gpu
import runtime.backends.cuda.tensorrt_module
from export.checkpoints.fetch import open_checkpoint
from export.cli import command
from export.errors import EngineBuildError
from export.graphs.layers import TENSORRT_PRECISIONS
from export.graphs.policy_net import action_table
from export.graphs.weights import BLOCK, quantize_blocks, quantize_rows
from export.parity.reference import reference_logits
from export.parity.target import TREE_PARENTS
from export.tensorrt.builder import parse_graph
from export.tensorrt.gpu import BuildGpu, choose_platform, parse_capabilities
from policy import TreeSpec, rough_latency
from runtime.backends.cpu.memory import HostMemory
from runtime.backends.kv import CacheLayout, KVCache
from runtime.console import run_command
from runtime.decoding.sampling import Scores
from runtime.decoding.tree import GrownTree, Tree
from runtime.drafters.registry import DRAFTERS
from runtime.errors import EngineDirError
from runtime.manifest.graphs import FILE_NAME, File, Graph, sha256_of
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from runtime.models import load_models
from runtime.sampling_params import SamplingParams
from tests.support.ended import Ended
from tests.support.tiny import reference, write_checkpoint
from tests.support.tiny_drafts import write_draft

trt = pytest.importorskip("tensorrt_rtx")
LAYERS, SIZES = 6, (1, 2, 4, 8, 16)
GRAPHS = ("target", "sample", "fuse", "draft", "expand", "tree", "policy")
FILES = {
    *("manifest.json", "tokenizer.json", "chat_template.jinja", "target.data", "draft.data"),
    *(f"{name}.{kind}" for name in GRAPHS for kind in ("onnx", "plan")),
}


@dataclass(frozen=True)
class Source:
    """A tiny target and its draft on disk."""

    root: Path
    model: Any

    @property
    def target(self) -> Path:
        return self.root / "tiny"

    @property
    def draft(self) -> Path:
        return self.root / "draft"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("trt")
    model = write_checkpoint(root / "tiny", num_hidden_layers=LAYERS)
    write_draft(root / "draft", "specforge", model)
    return Source(root, model)


def export_to(out: Path, source: Source, *more: str, draft: bool = True) -> Path:
    """Run the command; returns the only directory in ``out``."""
    drafted = ["--draft-weights", str(source.draft)] if draft else []
    line = ["--weights", str(source.target), *drafted, "--out", str(out), "--backend", "tensorrt", "--max-context", "64", *more]
    assert run_command(command, "resps-export", line) == 0
    (directory,) = out.iterdir()
    return directory


@pytest.fixture(scope="module")
def engine(source: Source) -> Path:
    return export_to(source.root / "engines", source, "--tree-sizes", ",".join(map(str, SIZES)))


@pytest.fixture(scope="module")
def manifest(engine: Path) -> Manifest:
    return load_manifest(engine)


Run = Callable[..., Ended]


@pytest.fixture
def run(source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command, which is expected to fail early: a target without a draft, one tree size."""

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        base = ["--weights", str(source.target), "--out", str(tmp_path / "e"), "--backend", "tensorrt", "--max-context", "64"]
        return Ended(run_command(command, "resps-export", [*base, "--tree-sizes", "4", *arguments]), *capfd.readouterr())

    return run


# --- what a finished export looks like --------------------------------------------------------------------------------


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
    assert counts == {"target": 6, "sample": 2, "fuse": 2, "draft": 6, "expand": 2, "tree": 1, "policy": 1}
    assert manifest.graphs["target"].inputs["past.0.key"].shape == (1, 2, 128, 16)
    assert manifest.graphs["target"].outputs["present.0.key"].dtype == "float16"
    words = shlex.split(manifest.rebuild)
    assert words[words.index("--backend") + 1] == "tensorrt"
    assert words[words.index("--tree-sizes") + 1] == "1,2,4,8,16"
    assert words[-1] == "--force"


def test_every_cache_tensor_is_updated_in_place(engine: Path) -> None:
    for name, layers in (("target", LAYERS), ("draft", 1)):
        network = parse_graph(trt, engine / f"{name}.onnx").network
        kinds = Counter(network.get_layer(index).type for index in range(network.num_layers))
        assert kinds[trt.LayerType.KV_CACHE_UPDATE] == 2 * layers
        assert kinds[trt.LayerType.ATTENTION_INPUT] == layers


def test_polygraphy_reads_the_target(engine: Path) -> None:
    pytest.importorskip("polygraphy")
    line = [str(Path(sys.executable).with_name("polygraphy")), "inspect", "model", str(engine / "target.onnx")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "Name: target | ONNX Opset: 24" in done.stdout
    assert "past.5.value [dtype=float16, shape=(1, 2, 128, 16)]" in done.stdout


def test_second_run_is_up_to_date_until_the_gpus_change(source: Source, engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (engine / FILE_NAME).stat().st_ino
    line = shlex.split(load_manifest(engine).rebuild)[1:-1]
    assert run_command(command, "resps-export", line) == 0
    assert capfd.readouterr().out == f"{engine} is up to date\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.build.export", lambda job: pytest.fail(f"wanted {job.platform.capabilities}"))
        with pytest.raises(pytest.fail.Exception, match=r"8\.6"):
            command.main([*line, "--compute-capability", "8.6"], standalone_mode=False)
    assert (engine / FILE_NAME).stat().st_ino == before


def test_dry_run_plans_the_right_sizes(source: Source, engine: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = ["--weights", str(source.target), "--out", str(tmp_path), "--backend", "tensorrt", "--max-context", "64", "--dry-run"]
    assert run_command(command, "resps-export", [*line, "--tree-sizes", ",".join(map(str, SIZES))]) == 0
    out = capfd.readouterr().out
    assert "KV cache; scratch memory is known once the plans are built" in out
    assert "tree sizes 1, 2, 4, 8, 16 rows" in out
    assert not list(tmp_path.iterdir())


# --- the graphs compute what they should ------------------------------------------------------------------------------


def rounded(precision: str, name: str, weight: np.ndarray) -> np.ndarray:
    """What is left of a weight in an engine, in float32. In int4 the head has eight bits."""
    if weight.ndim < 2:
        return weight
    if precision == "bf16":
        return weight.astype(bfloat16).astype(np.float32)
    if precision == "fp8":
        values, scale = quantize_rows(weight)
        return values.astype(np.float32) * scale.astype(np.float32)[:, None]
    bits = 8 if precision == "int8" or name == "lm_head.weight" else 4
    values, scales = quantize_blocks(weight, bits)
    return values * scales.astype(np.float16).astype(np.float32).repeat(BLOCK, axis=1)


@pytest.mark.parametrize(
    ("precision", "most"), [("fp32", 1e-4), ("fp16", 0.05), ("bf16", 0.1), ("fp8", 0.05), ("int8", 0.05), ("int4", 0.1)]
)
def test_every_precision_builds_and_equals_the_reference(tmp_path: Path, precision: str, most: float) -> None:
    """Differences in logits from float32 on the rounded weights: what is left is the rounding of activations, in bf16 of rotary tables."""
    path = tmp_path / "tiny"
    write_checkpoint(path, tied=False, num_hidden_layers=2)
    more = ["--precision", precision, "--tree-sizes", "2", "--compute-capability", "8.9"]
    directory = export_to(tmp_path / "e", Source(tmp_path, None), *more, draft=False)
    assert directory.name == ("tiny-trt" if precision == "fp16" else f"tiny-trt-{precision}")
    manifest = load_manifest(directory)
    expected_type = {"fp32": "float32", "bf16": "bfloat16"}.get(precision, "float16")
    assert manifest.graphs["target"].inputs["past.1.value"].dtype == expected_type
    assert (directory / "target.plan").stat().st_size > 1 << 20

    if precision not in ("fp32", "fp16"):
        tensors = load_file(path / "model.safetensors")
        kept = ("model.embed_tokens.weight",) if precision != "bf16" else ()
        save_file(
            {name: weight if name in kept else rounded(precision, name, weight) for name, weight in tensors.items()},
            path / "model.safetensors",
            metadata={"format": "pt"},
        )
    checkpoint = open_checkpoint(path)
    tree = Tree.from_parents(list(range(3, 3 + len(TREE_PARENTS))), TREE_PARENTS)
    expected = reference_logits(checkpoint, tree.tokens, tree.depth, tree.mask)
    actual = export.parity.target.exported_logits(directory / "target.onnx", checkpoint, TENSORRT_PRECISIONS[precision], tree)
    assert np.abs(actual - expected).max() < most
    assert np.abs(expected).max() > 3


def test_static_form_reads_the_first_slots_of_a_longer_cache(source: Source, tmp_path: Path) -> None:
    """Two passes through ONNX Runtime, the second behind the first, with a cache longer than what is read."""
    more = ["--precision", "fp32", "--tree-sizes", "2", "--compute-capability", "8.9"]
    directory = export_to(tmp_path / "e", source, *more, draft=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(directory / "target.onnx"), options, providers=["CPUExecutionProvider"])
    caches = {each.name: np.full(each.shape, np.nan, np.float32) for each in session.get_inputs() if each.name.startswith("past.")}
    for cache in caches.values():
        cache[:, :, :64] = 0  # what lies behind the slots that are read may be anything
    tokens, found = [5, 9, 200, 31, 7, 8, 100, 3, 12], []
    for start, end in ((0, 6), (6, 9)):
        count = end - start
        feeds = {"tokens": np.array([tokens[start:end]]), "depth": np.arange(count)[None], "tree_mask": np.tri(count, dtype=bool)}
        feeds |= {"past": np.array([start]), "slots": np.arange(64), "rows": np.arange(count)}
        _, logits, _, *presents = session.run(None, {**feeds, **caches})
        caches = dict(zip(caches, presents, strict=True))
        found.append(logits[0])
    np.testing.assert_allclose(np.concatenate(found), reference(source.model, tokens)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("precision", "draft_precision"), [("bf16", None), ("fp8", "fp8"), ("fp32", "int8"), ("int4", "bf16")])
def test_drafts_of_other_precisions_are_checked(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str,
                                                draft_precision: str | None) -> None:  # fmt: skip
    """Without building: the check runs both graphs, bf16 as its float32 twin."""

    def unbuilt(directory: Path, graph: Graph, *_: Any) -> File:
        (directory / str(graph.plan)).touch()
        return File(sha256_of(directory / str(graph.plan)), 0)

    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    more = ["--precision", precision, *(["--draft-precision", draft_precision] if draft_precision else [])]
    manifest = load_manifest(export_to(tmp_path / "e", source, *more))
    assert manifest.draft is not None
    assert manifest.draft.precision == (draft_precision or "bf16")
    assert manifest.draft.check.same_argmax > 0.5
    assert not [name for name in manifest.files if name.startswith("check.")]


# --- profiles ---------------------------------------------------------------------------------------------------------


class DeviceLike(HostMemory):
    """Host memory that passes for a device's, so that the runtime drives it as one."""

    on_host = False


class Recorder:
    """An engine that computes nothing and remembers every size it was asked for."""

    def __init__(self, name: str, graph: Graph, asked: set[tuple[str, tuple[tuple[str, int], ...]]]) -> None:
        self._name, self._graph, self._asked = name, graph, asked

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> Any:
        self._asked.add((self._name, tuple(sizes.items())))

        def tensors(side: Mapping[str, Any]) -> dict[str, np.ndarray]:
            small = {name: each for name, each in side.items() if not name.startswith(("past.", "present.", "uniforms"))}
            return {
                name: np.zeros([sizes[dim] if isinstance(dim, str) else dim for dim in each.shape], each.dtype)
                for name, each in small.items()
            }

        return SimpleNamespace(inputs=tensors(self._graph.inputs), outputs=tensors(self._graph.outputs), run=lambda: None)

    def close(self) -> None:
        """Nothing to free."""


class Recording:
    """A backend of Recorders."""

    def __init__(self, manifest: Manifest) -> None:
        self.memory, self._manifest = DeviceLike(), manifest
        self.asked: set[tuple[str, tuple[tuple[str, int], ...]]] = set()

    def engine(self, name: str, shared: Mapping[str, Any], limits: Mapping[str, int]) -> Recorder:
        return Recorder(name, self._manifest.graphs[name], self.asked)

    def cache(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int) -> KVCache:
        return KVCache(layers, keys, values, capacity, self._manifest.limits.span_step)

    def close(self) -> None:
        """Nothing to free."""


def first_profile(graph: Graph, sizes: Mapping[str, int]) -> int | None:
    """As runtime/backends/cuda/tensorrt.py chooses."""
    for index, ranges in enumerate(graph.profiles):
        if all(low <= sizes[dim] <= high for dim, (low, _, high) in ranges.items()):
            return index
    return None


def test_every_call_of_the_runtime_has_a_profile(manifest: Manifest) -> None:
    assert manifest.policy is not None
    assert manifest.draft is not None
    specs = [TreeSpec(*action) for action in manifest.policy.actions]
    specs += [TreeSpec(2, 1, 1), TreeSpec(16, 16, 1), TreeSpec(3, 2, 2), TreeSpec(16, 16, 16), TreeSpec(7, 6, 5)]
    backend = Recording(manifest)
    models = load_models(backend, manifest, DRAFTERS["eagle"], specs, rough_latency(False), specs[0])
    for nodes in range(1, manifest.limits.tree_nodes + 1):  # trees are cut near the end of the context
        models.target.verify(GrownTree(nodes) if nodes > 1 else Tree.chain([1]))
    for count in (*range(1, 19), 40, 63):
        models.target.cache.truncate(0)
        models.drafter.begin()
        for chunk, scores in models.target.prefill([1] * count):
            models.drafter.extend(chunk, scores, range(len(chunk)))
        for spec in specs:
            models.drafter.draft(1, spec)
            models.drafter.extend([1] * min(spec.depth + 1, spec.nodes), scores, range(min(spec.depth + 1, spec.nodes)))
            if len(models.drafter._tokens) + models.drafter._cache.length > 40:
                break
    pick = models.picker(SamplingParams(temperature=1.0, seed=0))
    outputs = {"logits": np.zeros((1, 16, manifest.shape.vocab), np.float32)}
    for nodes in range(1, manifest.limits.tree_nodes + 1):
        pick(Scores(outputs, Tree.chain([1] * nodes), 3, nodes), 0, 4)
    seen = Counter(name for name, _ in backend.asked)
    assert seen.keys() == set(GRAPHS) - {"policy"}
    for name, sizes in backend.asked:
        assert first_profile(manifest.graphs[name], dict(sizes)) is not None, (name, sizes)


def test_each_tree_size_and_width_has_its_own_profile(manifest: Manifest) -> None:
    target, draft = manifest.graphs["target"], manifest.graphs["draft"]
    chosen = [first_profile(target, {"n": size, "r": size, "span": 64}) for size in SIZES]
    assert chosen == list(range(len(SIZES)))
    assert first_profile(target, {"n": 128, "r": 1, "span": 128}) == len(SIZES)
    assert first_profile(target, {"n": 17, "r": 17, "span": 64}) is None
    levels = [{"m": width, "w": 1 + width * 3, "span": 64, "r": width, "k": width} for width in (1, 2, 4, 8, 16)]
    assert [first_profile(draft, level) for level in levels] == [0, 1, 2, 3, 4]
    assert first_profile(draft, {"m": 100, "w": 100, "span": 128, "r": 1, "k": 1}) == 5
    for graph in manifest.graphs.values():
        for profile in graph.profiles:
            assert all(1 <= low <= best <= high for low, best, high in profile.values())
    for name, rows in (("target", "n"), ("draft", "m"), ("fuse", "m")):
        assert all(profile[rows][2] > 1 for profile in manifest.graphs[name].profiles)


def test_actions_are_trees_that_exist(manifest: Manifest) -> None:
    assert manifest.policy is not None
    assert manifest.draft is not None
    assert (manifest.policy.name, manifest.policy.trained) == ("resps", False)
    actions = manifest.policy.actions
    assert len(set(actions)) == len(actions) > 8
    for nodes, depth, width in actions:
        assert TreeSpec(nodes, depth, width).nodes in SIZES
        assert depth <= manifest.draft.max_depth
        assert width <= manifest.draft.max_width
    assert action_table((1,), manifest.draft) == ()
    narrow = dataclasses.replace(manifest.draft, max_depth=2, max_width=3)
    assert action_table((2, 8, 64), narrow) == ((2, 1, 3), (8, 2, 3))


# --- what cannot be had ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tree-sizes", "1,,2"], "--tree-sizes are different whole numbers from 1 to 512, not '1,,2'"),
        (["--tree-sizes", "a"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "0,4"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "4,8,4"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "-1"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "513"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "²"], "--tree-sizes are different whole numbers"),
        (["--compute-capability", "new"], "compute capabilities are different numbers such as 8.9,12.0, not 'new'"),
        (["--compute-capability", ""], "compute capabilities are different numbers"),
        (["--compute-capability", "8.9,8.9"], "compute capabilities are different numbers"),
        (["--compute-capability", "8.9,9.0"], "builds nothing for compute capability 9.0, only for 7.5, 8.0, 8.6, 8.9, 12.0"),
        (["--backend", "onnxruntime", "--precision", "fp8"], "fp8 needs --backend tensorrt"),
        (["--backend", "onnxruntime", "--draft-precision", "fp8"], "fp8 needs --backend tensorrt"),
        (["--backend", "onnxruntime", "--compute-capability", "8.9"], "--compute-capability needs --backend tensorrt"),
        (["--backend", "openvino"], "'openvino' is not one of"),
    ],
)
def test_usage_errors(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert message in ended.complaint
    assert ended.complaint.endswith("see resps-export --help")
    assert not (tmp_path / "e").exists()


def fake(name: str, version: str) -> Any:
    return SimpleNamespace(__name__=name, __version__=version, ComputeCapability=trt.ComputeCapability)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What can be imported, by name; an error is raised."""
    present: dict[str, Any] = {}

    def import_module(name: str) -> Any:
        found = present.get(name, ModuleNotFoundError(name))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(runtime.backends.cuda.tensorrt_module.importlib, "import_module", import_module)
    return present


def test_nothing_to_build_with(run: Run, tmp_path: Path, modules: dict[str, Any]) -> None:
    ended = run()
    assert ended.code == 3
    assert "tensorrt is not installed and tensorrt_rtx is not installed — pip install 'resps[tensorrt]' or pip install 'resps[rtx]'" in (
        ended.complaint
    )
    modules |= {"tensorrt_rtx": fake("tensorrt_rtx", "1.6.1.120"), "tensorrt": ImportError("libnvonnxparser.so.11: cannot open")}
    ended = run()
    assert "tensorrt cannot be loaded (libnvonnxparser.so.11: cannot open) and tensorrt_rtx 1.6.1.120 is older than 1.7" in ended.complaint
    assert not (tmp_path / "e").exists()


def test_which_tensorrt_is_taken(modules: dict[str, Any]) -> None:
    modules |= {"tensorrt": fake("tensorrt", "10.15.1"), "tensorrt_rtx": fake("tensorrt_rtx", "1.10.0")}
    assert runtime.backends.cuda.tensorrt_module.load().__name__ == "tensorrt"
    assert runtime.backends.cuda.tensorrt_module.load("tensorrt_rtx").__version__ == "1.10.0"
    modules["tensorrt"] = fake("tensorrt", "10.9.0")
    assert runtime.backends.cuda.tensorrt_module.load().__name__ == "tensorrt_rtx"
    with pytest.raises(EngineDirError, match=r"tensorrt 10\.9\.0 is older than 10\.15 — pip install --upgrade 'resps\[tensorrt\]'"):
        runtime.backends.cuda.tensorrt_module.load("tensorrt")
    with pytest.raises(EngineDirError, match="there is no TensorRT called 'onnx'"):
        runtime.backends.cuda.tensorrt_module.load("onnx")


def test_tensorrt_itself_needs_a_gpu(run: Run, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    modules["tensorrt"] = fake("tensorrt", "11.4.0")
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: None)
    ended = run()
    assert ended.code == 1
    assert "tensorrt builds engines only where there is a GPU, and there is none — export on the machine" in ended.complaint
    assert "--compute-capability needs tensorrt_rtx" in run("--compute-capability", "8.9").complaint
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: BuildGpu("NVIDIA H200", "9.0"))
    platform = choose_platform(())
    assert (platform.capabilities, platform.rtx, platform.gpu) == (("9.0",), False, BuildGpu("NVIDIA H200", "9.0"))


def test_gpu_that_is_here_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: BuildGpu("NVIDIA L4", "8.9"))
    assert choose_platform(()).capabilities == ("8.9",)
    assert choose_platform(("12.0",)).capabilities == ("12.0",)
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: None)
    assert choose_platform(()).capabilities == ("8.9", "12.0")
    assert parse_capabilities("12.0, 8.9") == ("8.9", "12.0")


@pytest.mark.parametrize("more", [["--tree-sizes", "1", "--prefill-rows", "1"], ["--tree-sizes", "512,3", "--max-context", "100"]])
def test_extreme_sizes_build(source: Source, tmp_path: Path, more: list[str]) -> None:
    manifest = load_manifest(export_to(tmp_path / "e", source, "--compute-capability", "12.0", *more))
    assert (manifest.policy is None) == (manifest.tree_sizes == (1,))
    assert all(graph.profiles for graph in manifest.graphs.values())


def test_failed_build_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise EngineBuildError("tensorrt_rtx cannot build target.onnx: no kernel — choose another --precision")

    monkeypatch.setattr("export.tensorrt.plans.build_plan", refuse)
    ended = run()
    assert (ended.code, "no kernel" in ended.complaint) == (1, True)
    assert not list((tmp_path / "e").iterdir())
