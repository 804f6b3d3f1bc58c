"""The whole resps-export command: what it leaves behind when it works, when it fails, and when it is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import export.build
import export.check
import export.cli
from export.cli import command
from export.errors import CheckpointError
from export.models import MODELS, VICUNA_CHAT, ModelEntry
from export.weights import WeightFile
from runtime.console import run_command
from runtime.errors import EngineDirError
from runtime.manifest import FILE_NAME, Manifest, load_manifest
from tests.ended import Ended
from tests.tiny import VOCAB, tiny_model, write_checkpoint, write_gguf, write_tokenizer

ROOT = Path(__file__).parents[1]
FILES = {"manifest.json", "target.onnx", "target.data", "sample.onnx", "tokenizer.json", "chat_template.jinja"}
LAYERS = 6


Run = Callable[..., Ended]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Hugging Face directory of a tiny llama, ready to be exported."""
    write_checkpoint(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def run(source: Path, engines: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command on ``source`` in this process; further arguments may override --weights."""

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        base = ["--weights", str(source), "--out", str(engines), "--max-context", "64"]
        code = run_command(command, "resps-export", [*base, *arguments])
        return Ended(code, *capfd.readouterr())

    return run


def snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below ``directory``: a change of any file or directory shows."""
    found = [directory, *directory.rglob("*")] if directory.exists() else []
    return {str(path): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def expect_no_engine(directory: Path) -> None:
    assert not (directory / FILE_NAME).exists()
    with pytest.raises(EngineDirError):
        load_manifest(directory)


def expect_engine(directory: Path) -> Manifest:
    """A complete directory, and nothing unfinished beside it."""
    assert names_in(directory.parent) == {directory.name}
    assert names_in(directory) == FILES
    return load_manifest(directory)


# --- what a finished export looks like -------------------------------------------------------------------------------


def test_directory_is_complete_and_describes_itself(run: Run, source: Path, engines: Path) -> None:
    ended = run()
    assert (ended.code, ended.out.startswith(f"{engines / 'tiny'} is ready: ")) == (0, True), ended.err
    assert "resps-export: " not in ended.err
    directory = engines / "tiny"
    manifest = expect_engine(directory)
    assert directory.stat().st_mode & 0o777 == 0o755
    assert set(manifest.files) == FILES - {FILE_NAME}
    assert (manifest.model, manifest.precision, manifest.backend) == ("tiny", "fp32", "onnxruntime")
    assert (manifest.shape.layers, manifest.shape.vocab, manifest.shape.captured_layers) == (LAYERS, VOCAB, (2, 3, 3))
    limits = manifest.limits
    assert (limits.context, limits.capacity, limits.tree_nodes, limits.prefill_rows) == (64, 128, 64, 128)
    assert (manifest.tokens.stop, manifest.tokens.bos) == ((2,), 1)
    assert manifest.check.rows == 8
    assert manifest.check.max_abs_logit_diff < 1e-4
    assert manifest.check.mean_kl < 1e-8
    assert manifest.check.same_argmax == 1.0
    assert (directory / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
    assert "messages" in (directory / "chat_template.jinja").read_text()
    for name, graph in manifest.graphs.items():
        model = onnx.load(directory / graph.file, load_external_data=False)
        onnx.checker.check_model(str(directory / graph.file))
        assert (graph.file, model.graph.name) == (f"{name}.onnx", name)
        assert list(graph.inputs) == [each.name for each in model.graph.input]
        assert list(graph.outputs) == [each.name for each in model.graph.output]
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 24)]
        assert all(node.domain == "" for node in every_node(model.graph))
    target = manifest.graphs["target"]
    assert (target.inputs["tree_mask"].dtype, target.inputs["tree_mask"].shape) == ("bool", ("n", "n"))
    assert (target.inputs["past.5.key"].dtype, target.inputs["past.5.key"].shape) == ("float32", (1, 2, "span", 16))
    assert (target.outputs["logits"].dtype, target.outputs["logits"].shape) == ("float32", (1, "r", VOCAB))


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from every_node(attribute.g)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
def test_every_precision_has_its_own_directory(run: Run, engines: Path, precision: str) -> None:
    assert run("--precision", precision).code == 0
    manifest = expect_engine(engines / f"tiny-{precision}")
    assert manifest.precision == precision
    assert manifest.graphs["target"].inputs["past.0.key"].dtype == ("float16" if precision == "fp16" else "float32")
    assert 0 < manifest.check.mean_kl <= export.check.MAX_KL[precision]


def test_name_and_model_of_the_directory(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known model's own chat template stands in where the checkpoint has none."""
    (engines.parent / "tiny" / "tokenizer_config.json").unlink()
    assert run("--model", "vicuna-13b", "--no-draft", "--name", "mine").code == 0
    manifest = expect_engine(engines / "mine")
    assert manifest.model == "vicuna-13b"
    assert (engines / "mine" / "chat_template.jinja").read_text() == VICUNA_CHAT


def test_tokenizer_facts_of_the_checkpoint(run: Run, source: Path, engines: Path) -> None:
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    templates = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert run().code == 0
    assert load_manifest(engines / "tiny").tokens.stop == (7, 2)
    assert (engines / "tiny" / "chat_template.jinja").read_text() == "yes"
    (source / "chat_template.jinja").write_text("from its own file")
    assert run("--force").code == 0
    assert (engines / "tiny" / "chat_template.jinja").read_text() == "from its own file"


def test_checkpoint_without_a_chat_template(run: Run, source: Path, engines: Path) -> None:
    (source / "tokenizer_config.json").unlink()
    assert run().code == 0
    assert names_in(engines / "tiny") == FILES - {"chat_template.jinja"}
    assert load_manifest(engines / "tiny").tokens.chat_template is None


def test_gguf_becomes_the_same_engine(run: Run, tmp_path: Path, engines: Path) -> None:
    model = write_checkpoint(tmp_path / "hf", tied=False)
    write_gguf(tmp_path / "model.gguf", model, tokenizer=tmp_path / "hf" / "tokenizer.json")
    ended = run("--weights", str(tmp_path / "model.gguf"))
    assert ended.code == 0, ended.err
    manifest = load_manifest(engines / "model")
    assert (manifest.tokens.stop, manifest.tokens.bos, manifest.tokens.chat_template) == ((2,), 1, None)
    assert run("--weights", str(tmp_path / "hf")).code == 0
    assert manifest.files["target.data"].sha256 == load_manifest(engines / "hf").files["target.data"].sha256
    ours, theirs = (Tokenizer.from_file(str(engines / name / "tokenizer.json")) for name in ("model", "hf"))
    for text in ("the cat and a dog", "  sat on<s>the log</s>", "dogcat"):
        ids = theirs.encode(text).ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        ("default", ["It", "'s", "Ġ12345", "Ġ(", "x", ")"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ(", "x", ")"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "45", "Ġ(", "x", ")"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ(", "x", ")"]),
    ],
)
def test_gguf_tokenizer_splits_as_its_name_says(run: Run, tmp_path: Path, engines: Path, split: str, pieces: list[str]) -> None:
    model = tiny_model(num_hidden_layers=1)
    write_gguf(tmp_path / "model.gguf", model, tokenizer=tmp_path / "tiny" / "tokenizer.json", split=split, add_bos=True)
    assert run("--weights", str(tmp_path / "model.gguf")).code == 0
    tokenizer = Tokenizer.from_file(str(engines / "model" / "tokenizer.json"))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("It's 12345 (x)")] == pieces
    assert tokenizer.encode("cat").tokens[0] == "<s>"
    assert "<s>" not in tokenizer.encode("cat", add_special_tokens=False).tokens


@pytest.mark.parametrize("unknown", [{"tokenizer_kind": "llama"}, {"split": "tekken"}])
def test_gguf_tokenizer_of_another_kind_is_refused(run: Run, tmp_path: Path, engines: Path, unknown: Mapping[str, str]) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(num_hidden_layers=1), tokenizer=tmp_path / "tiny" / "tokenizer.json", **unknown)
    ended = run("--weights", str(tmp_path / "model.gguf"))
    assert ended.code == 1
    assert f"tokenizer {unknown.get('tokenizer_kind', 'gpt2')}/{unknown.get('split', 'default')} is not supported" in ended.complaint
    assert names_in(engines) == set()


def test_older_tokenizer_files_are_converted(run: Run, source: Path, engines: Path) -> None:
    expected = Tokenizer.from_file(str(source / "tokenizer.json"))
    bpe = json.loads((source / "tokenizer.json").read_text())["model"]
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in bpe["merges"])]) + "\n")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}))
    ended = run()
    assert ended.code == 0, ended.err
    text = "the cat and the dog"
    assert Tokenizer.from_file(str(engines / "tiny" / "tokenizer.json")).encode(text).ids == expected.encode(text).ids


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_damaged_tokenizer(run: Run, source: Path, engines: Path, text: str) -> None:
    """A directory with a manifest can be decoded with, so this must not wait for resps-run."""
    (source / "tokenizer.json").write_text(text)
    ended = run()
    assert ended.code == 1
    assert "cannot read" in ended.complaint
    assert "tokenizer.json" in ended.complaint
    assert names_in(engines) == set()


# --- again -----------------------------------------------------------------------------------------------------------


def test_second_run_is_up_to_date_and_touches_nothing(run: Run, engines: Path) -> None:
    assert run().code == 0
    before = snapshot(engines)
    ended = run()
    assert (ended.code, ended.out) == (0, f"{engines / 'tiny'} is up to date\n")
    assert snapshot(engines) == before


def test_force_rebuilds_the_same(run: Run, engines: Path) -> None:
    assert run().code == 0
    before, first = snapshot(engines / "tiny"), expect_engine(engines / "tiny")
    assert run("--force").code == 0
    assert expect_engine(engines / "tiny") == first
    after = snapshot(engines / "tiny")
    assert before.keys() == after.keys()
    assert all(before[path][0] != after[path][0] for path in before)  # every file is a new one


def change_weights(source: Path) -> None:
    write_checkpoint(source, seed=1)


def change_config(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))


def change_tokenizer(source: Path) -> None:
    text = (source / "tokenizer.json").read_text()
    (source / "tokenizer.json").write_text(text + "\n")


def change_template(source: Path) -> None:
    (source / "chat_template.jinja").write_text("changed")


def change_stop_tokens(source: Path) -> None:
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))


@pytest.mark.parametrize("change", [change_weights, change_config, change_tokenizer, change_template, change_stop_tokens])
def test_changed_source_is_exported_again(run: Run, source: Path, engines: Path, change: Callable[[Path], None]) -> None:
    assert run().code == 0
    before = expect_engine(engines / "tiny")
    change(source)
    ended = run()
    assert (ended.code, "is ready" in ended.out) == (0, True)
    after = expect_engine(engines / "tiny")
    assert after.source != before.source
    assert (after.files, after.tokens, after.graphs) != (before.files, before.tokens, before.graphs)
    assert "up to date" in run().out


def test_changed_options_or_a_damaged_file_are_exported_again(run: Run, engines: Path) -> None:
    assert run().code == 0
    assert "is ready" in run("--prefill-rows", "32").out
    assert load_manifest(engines / "tiny").limits.prefill_rows == 32
    with (engines / "tiny" / "target.data").open("r+b") as file:
        file.write(b"\xff")
    assert "is ready" in run("--prefill-rows", "32").out
    (engines / "tiny" / FILE_NAME).write_text("{")
    assert "is ready" in run("--prefill-rows", "32").out
    expect_engine(engines / "tiny")


# --- plans and machine-readable output -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_dry_run_writes_nothing_and_plans_the_right_sizes(run: Run, tmp_path: Path, engines: Path, precision: str) -> None:
    write_checkpoint(tmp_path / "wide", "qwen2", hidden_size=256, intermediate_size=768, num_attention_heads=8)
    before = snapshot(tmp_path)
    arguments = ("--weights", str(tmp_path / "wide"), "--precision", precision)
    ended = run(*arguments, "--dry-run", "--json")
    assert ended.code == 0
    plan = json.loads(ended.out)
    people = run(*arguments, "--dry-run")
    assert (people.code, f"context {plan['context']} tokens" in people.out) == (0, True)
    assert snapshot(tmp_path) == before

    assert run(*arguments).code == 0
    data = Path(plan["directory"]) / "target.data"
    alignment = 4096 * len(onnx.load(data.with_name("target.onnx"), load_external_data=False).graph.initializer)
    assert plan["weight_bytes"] <= data.stat().st_size <= plan["weight_bytes"] * 1.01 + alignment
    assert sum(file.stat().st_size for file in data.parent.iterdir()) <= plan["disk_bytes"]


def test_json_is_one_object_whatever_happens(run: Run, engines: Path) -> None:
    plan = json.loads(run("--json", "--dry-run").out)
    assert (plan["directory"], plan["precision"]) == (str(engines / "tiny"), "fp32")
    made = run("--json")
    stored = json.loads((engines / "tiny" / FILE_NAME).read_text())
    assert (made.code, json.loads(made.out)) == (0, stored)
    again = run("--json")
    assert (again.code, json.loads(again.out)) == (0, stored)


# --- failures --------------------------------------------------------------------------------------------------------


class Fault:
    """Raises ``error`` when called for the ``at``-th time; until then does what it stands for."""

    def __init__(self, error: BaseException, original: Callable[..., Any], at: int = 1) -> None:
        self.error, self.original, self.left = error, original, at

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.original(*arguments, **named)

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        """As a method, when it stands for one."""
        return self if instance is None else lambda *arguments, **named: self(instance, *arguments, **named)


# Where a run can fail, in the order in which it gets there: owner, attribute, and the call that fails.
STAGES: Mapping[str, tuple[Any, str, int]] = {
    "tokenizer": (export.build, "_tokenizer_files", 1),
    "first bytes": (WeightFile, "_append", 1),
    "weights": (WeightFile, "_append", 20),
    "layer": (export.cli, "_progress", 3),
    "last layer": (export.cli, "_progress", LAYERS),
    "target graph": (onnx, "save", 1),
    "sample graph": (onnx, "save", 2),
    "piece of the check": (onnx, "save", 4),
    "reference": (export.check, "reference_logits", 1),
    "checked": (export.cli, "_progress", LAYERS + 2),
    "hash": (export.build, "sha256_of", 2),
    "manifest": (Manifest, "to_json", 1),
    "sync": (os, "fsync", 2),
    "first rename": (Path, "rename", 1),
    "last rename": (Path, "rename", 2),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "existing"])
def test_failure_at_any_stage_leaves_what_was_there(
    run: Run, source: Path, engines: Path, monkeypatch: pytest.MonkeyPatch, stage: str, existing: bool
) -> None:
    owner, name, at = STAGES[stage]
    if stage == "last rename" and not existing:
        at = 1  # there is nothing to move away first
    if existing:
        assert run().code == 0
    before = {key: value for key, value in snapshot(engines).items() if key != str(engines)}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        fault = Fault(full, getattr(owner, name), at)
        patch.setattr(owner, name, fault)
        if "rename" in stage:  # as on a system that cannot exchange two directories in one step
            patch.setattr(export.build, "_exchange", lambda first, second: False)
        ended = run("--force")
    assert fault.left <= 0
    assert ended.code == 1
    assert "No space left on device" in ended.complaint
    assert ended.out == ""
    assert {key: value for key, value in snapshot(engines).items() if key != str(engines)} == before
    if existing:
        expect_engine(engines / "tiny")
        assert "up to date" in run().out
    else:
        expect_no_engine(engines / "tiny")
        assert run().code == 0
        expect_engine(engines / "tiny")


def test_onnx_runtime_installed_under_another_name(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its GPU build is."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(export.build, "version", version)
    assert run().code == 0
    assert expect_engine(engines / "tiny").built_with["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("too much"), 1, "MemoryError: too much"),
        (RuntimeError("a defect\nof ours"), 1, "internal error, RuntimeError: a defect of ours"),
    ],
)
def test_other_endings_clean_up_too(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(export.cli, "_progress", Fault(error, export.cli._progress, 4))
    ended = run()
    assert ended.code == code
    assert ended.err.splitlines()[-1].startswith(f"resps-export: {message}")
    assert names_in(engines) == set()


# Run in another process, which dies on the spot: no clean-up of any kind.
KILLED = """
import os, signal, sys
from pathlib import Path
import export.build, export.cli
from runtime.console import run_command

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

rename, seen = Path.rename, []
def second_rename(self, target):
    seen.append(self)
    return rename(self, target) if len(seen) == 1 else die()

{patch}
run_command(export.cli.command, "resps-export", sys.argv[1:])
"""
KILLS = {
    "writing weights": "export.cli._progress = lambda stage, done, total: done == 3 and die()",
    "checking": "export.build.check_target = die",
    "before the manifest": "export.build.Manifest.to_json = die",
    "before the move": "os.fsync = die",
}


def killed(patch: str, *arguments: str) -> None:
    assert elsewhere(KILLED.format(patch=patch), *arguments).returncode == -signal.SIGKILL


def elsewhere(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python program run in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("moment", KILLS)
def test_killed_run_leaves_no_engine_and_the_next_one_cleans_up(run: Run, source: Path, engines: Path, moment: str) -> None:
    killed(KILLS[moment], "--weights", str(source), "--out", str(engines), "--max-context", "64")
    (partial,) = engines.iterdir()
    assert partial.name.startswith(".tiny.partial-")
    assert names_in(partial)  # it did get somewhere
    expect_no_engine(engines / "tiny")
    assert run().code == 0
    expect_engine(engines / "tiny")


@pytest.mark.parametrize(
    ("patch", "left"),
    [
        (KILLS["before the move"], "old"),
        ("export.build.shutil.rmtree = die", "new"),
        ("export.build._exchange = lambda *_: False; Path.rename = second_rename", "none"),
    ],
    ids=["before the move", "after the exchange", "between two renames where nothing can be exchanged"],
)
def test_killed_rebuild_leaves_a_whole_engine_or_none(run: Run, source: Path, engines: Path, patch: str, left: str) -> None:
    assert run().code == 0
    before = snapshot(engines / "tiny")
    killed(patch, "--weights", str(source), "--out", str(engines), "--max-context", "64", "--force")
    assert len(names_in(engines)) == 2  # the engine or its stashed form, and what is to be removed
    if left == "none":
        expect_no_engine(engines / "tiny")
    else:
        load_manifest(engines / "tiny")
        assert (snapshot(engines / "tiny") == before) == (left == "old")
        assert "up to date" in run().out
    assert run("--force").code == 0
    expect_engine(engines / "tiny")


def test_only_partial_directories_of_dead_runs_of_this_engine_are_removed(run: Run, engines: Path) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    dead = f".tiny.partial-{finished.pid}-abc"
    kept = {f".tiny.partial-{os.getppid()}-abc", f".other.partial-{finished.pid}-abc", ".tiny.partial-notes", "other"}
    for name in (dead, *kept):
        (engines / name).mkdir(parents=True)
        (engines / name / "file").write_text("x")
    assert run().code == 0
    assert names_in(engines) == {"tiny", *kept}


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"manifest.json": '{"name": "a web page"}', "icon.png": "x"}])
def test_directory_that_is_no_engine_is_not_overwritten(run: Run, engines: Path, content: Mapping[str, str]) -> None:
    (engines / "tiny").mkdir(parents=True)
    for name, text in content.items():
        (engines / "tiny" / name).write_text(text)
    before = snapshot(engines)
    for arguments in ([], ["--force"]):
        ended = run(*arguments)
        assert ended.code == 1
        assert "exists and is no engine directory — move it away" in ended.complaint
    assert snapshot(engines) == before


def test_file_in_the_way_is_not_overwritten_but_an_empty_directory_is_used(run: Run, engines: Path) -> None:
    engines.mkdir()
    (engines / "tiny").write_text("mine")
    assert "exists and is no engine directory" in run("--force").complaint
    assert (engines / "tiny").read_text() == "mine"
    (engines / "tiny").unlink()
    (engines / "tiny").mkdir()
    assert run().code == 0
    expect_engine(engines / "tiny")


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
    [[], ["--model"], ["--weights", "x", "--precision", "int3"], ["--weights", "x", "--max-context", "1"], ["--weights", "x", "--depth"]],
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


def test_hub_out_of_reach(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    ended = run("--weights", "owner/model")
    assert ended.code == 1
    assert "cannot fetch owner/model from the hub: no route — " in ended.complaint
    assert not engines.exists()


def test_model_name_goes_to_its_repository(tmp_path: Path, source: Path, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    original = export.check.reference_logits
    random = np.random.default_rng(0)

    def disturbed(*arguments: Any) -> np.ndarray:
        logits = original(*arguments)
        return logits + noise * random.standard_normal(logits.shape, np.float32)

    monkeypatch.setattr(export.check, "reference_logits", disturbed)
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
    assert "logits that are not finite in fp16 — choose another --precision" in ended.complaint
    assert names_in(engines) == set()
    assert run("--precision", "bf16").code == 0


# --- memory ----------------------------------------------------------------------------------------------------------

# A llama of 196 million weights: 393 MB as it is stored and twice that in float32, the form in which they are read.
BIG = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 16384}
MEASURED = """
import sys
import export.cli
from runtime.console import run_command
code = run_command(export.cli.command, "resps-export", sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(code, int(peak.split()[1]) >> 10)
"""


def write_big_checkpoint(directory: Path, layers: int = 14, per_shard: int = 30) -> int:
    """A sharded bfloat16 llama, written a tensor at a time; returns its size in bytes."""
    write_tokenizer(directory)
    hidden, inner, vocab = BIG["hidden_size"], BIG["intermediate_size"], BIG["vocab_size"]
    parts = {f"self_attn.{each}_proj": (hidden, hidden) for each in "qkvo"}
    parts |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    parts |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    shapes = {f"model.layers.{layer}.{part}.weight": shape for layer in range(layers) for part, shape in parts.items()}
    shapes |= {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    names = list(shapes)
    pattern = (np.random.default_rng(0).standard_normal(65521) * hidden**-0.5).astype(bfloat16)
    config = {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": True, "max_position_embeddings": 512, **BIG}
    (directory / "config.json").write_text(json.dumps(config))
    place, total = {}, 0
    for number, start in enumerate(range(0, len(names), per_shard)):
        file = directory / f"model-{number:05}.safetensors"
        header, offset = {}, 0
        for name in names[start : start + per_shard]:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, offset + size]}
            place[name], offset = file.name, offset + size
        text = json.dumps(header).encode()
        with file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in header:
                values = np.resize(pattern, shapes[name]) if len(shapes[name]) == 2 else np.ones(shapes[name], bfloat16)
                out.write(values.tobytes())
        total += offset
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return total


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("big")
    assert write_big_checkpoint(directory) > 375 << 20
    yield directory
    shutil.rmtree(directory)  # pytest would keep it for three more runs


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 400), ("bf16", 700), ("int4", 360)])
def test_memory_stays_small_however_large_the_checkpoint(tmp_path: Path, big: Path, precision: str, most: int) -> None:
    """Bounds in MiB. The checkpoint has 375, or 750 in float32: holding it whole would add as much to the peak. bf16 needs most, because
    the check lets ONNX Runtime hold a few layers both as they are stored and in float32."""
    line = ["--weights", str(big), "--out", str(tmp_path), "--name", "big", "--precision", precision, "--max-context", "256"]
    plan = json.loads(elsewhere(MEASURED, *line, "--dry-run", "--json").stdout.splitlines()[0])
    measured = elsewhere(MEASURED, *line)
    files = names_in(tmp_path / "big")
    shutil.rmtree(tmp_path)
    code, peak = map(int, measured.stdout.splitlines()[-1].split())
    assert (code, files) == (0, FILES)
    assert peak < most
    assert peak < plan["memory"] >> 20
