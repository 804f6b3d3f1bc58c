"""The whole resps-export command when it succeeds: its files and messages, the first time and again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from tokenizers import Tokenizer

import export.build
import export.cli
import export.parity.target
from export.checkpoints.models import VICUNA_CHAT
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from tests.support.exporting import FILES, LAYERS, Run, expect_engine, names_in, snapshot
from tests.support.tiny import VOCAB, tiny_model, write_checkpoint, write_gguf


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
    assert Tokenizer.from_file(str(directory / "tokenizer.json")).to_str() == Tokenizer.from_file(str(source / "tokenizer.json")).to_str()
    assert "messages" in (directory / "chat_template.jinja").read_text()
    for name, graph in manifest.graphs.items():
        model = onnx.load(directory / graph.file, load_external_data=False)
        onnx.checker.check_model(str(directory / graph.file))
        assert (graph.file, model.graph.name) == (f"{name.replace('_', '.')}.onnx", name)
        assert list(graph.inputs) == [each.name for each in model.graph.input]
        assert list(graph.outputs) == [each.name for each in model.graph.output]
        assert [(each.domain, each.version) for each in model.opset_import if not each.domain] == [("", 24)]
        assert {node.op_type for node in every_node(model.graph) if node.domain} <= {
            "MatMulNBits",
            "FusedMatMul",
        }  # of the int8 draft, of the graphs with lanes
    target = manifest.graphs["target"]
    assert (target.inputs["tree_mask"].dtype, target.inputs["tree_mask"].shape) == ("bool", ("n", "n"))
    assert (target.inputs["past.5.key"].dtype, target.inputs["past.5.key"].shape) == ("float32", (1, 2, "span", 16))
    assert (target.outputs["logits"].dtype, target.outputs["logits"].shape) == ("float32", (1, "r", VOCAB))


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of its subgraphs."""
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
    assert 0 < manifest.check.mean_kl <= export.parity.target.MAX_KL[precision]


def test_name_and_model_of_the_directory(run: Run, engines: Path) -> None:
    """A known model's chat template is used if the checkpoint has none."""
    (engines.parent / "tiny" / "tokenizer_config.json").unlink()
    assert run("--model", "vicuna-13b", "--no-draft", "--name", "mine").code == 0
    manifest = expect_engine(engines / "mine")
    assert manifest.model == "vicuna-13b"
    assert (engines / "mine" / "chat_template.jinja").read_text() == VICUNA_CHAT


def test_tokenizer_facts_of_the_checkpoint(run: Run, source: Path, engines: Path) -> None:
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    templates = [{"name": "tools", "template": "{{ no"}, {"name": "default", "template": "yes"}]
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert run().code == 0
    assert set(load_manifest(engines / "tiny").tokens.stop) == {7, 2}
    assert (engines / "tiny" / "chat_template.jinja").read_text() == "yes"
    (source / "chat_template.jinja").write_text("from its own file")
    assert run("--force").code == 0
    assert (engines / "tiny" / "chat_template.jinja").read_text() == "from its own file"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("generation_config.json", {"eos_token_id": "</s>"}, "has '</s>' for eos_token_id, which is not a token id"),
        ("generation_config.json", {"eos_token_id": [2, True]}, "has [2, True] for eos_token_id"),
        ("tokenizer_config.json", {"chat_template": {"default": 3}}, "has a chat template that is not text"),
        ("tokenizer_config.json", {"chat_template": ["x", {"name": "default", "template": 3}]}, "has a chat template that is not text"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: 'utf-8' codec"),
    ],
)
def test_tokenizer_facts_that_cannot_be(run: Run, source: Path, engines: Path, name: str, content: Any, says: str) -> None:
    (source / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    ended = run()
    assert ended.code == 1
    assert says in ended.complaint
    assert not engines.exists() or not names_in(engines)


def test_checkpoint_without_a_chat_template(run: Run, source: Path, engines: Path) -> None:
    (source / "tokenizer_config.json").unlink()
    assert run().code == 0
    assert names_in(engines / "tiny") == FILES - {"chat_template.jinja"}
    assert load_manifest(engines / "tiny").tokens.chat_templates == {}


def test_gguf_becomes_the_same_engine(run: Run, tmp_path: Path, engines: Path) -> None:
    model = write_checkpoint(tmp_path / "hf", tied=False)
    write_gguf(tmp_path / "model.gguf", model, tokenizer=tmp_path / "hf" / "tokenizer.json", split="gpt-2")
    ended = run("--weights", str(tmp_path / "model.gguf"))
    assert ended.code == 0, ended.err
    manifest = load_manifest(engines / "model")
    assert (manifest.tokens.stop, manifest.tokens.bos, dict(manifest.tokens.chat_templates)) == ((2,), 1, {})
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
        ("gpt-2", ["It", "'s", "Ġ12345", "Ġ(", "x", ")"]),
        ("default", ["It", "'", "s", "Ġ", "123", "45", "Ġ", "(", "x", ")"]),
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


@pytest.mark.parametrize("unknown", [{"tokenizer_kind": "bert"}, {"split": "viking"}])
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
    """A directory with a manifest must be usable, so the export must find this error, not resps-run."""
    (source / "tokenizer.json").write_text(text)
    ended = run()
    assert ended.code == 1
    assert "cannot read" in ended.complaint
    assert "tokenizer.json" in ended.complaint
    assert names_in(engines) == set()


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
    (source / "tokenizer.json").write_text(text.replace('"normalizer": null', '"normalizer": {"type": "NFC"}'))


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
    expect_engine(engines / "tiny")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_dry_run_writes_nothing_and_plans_the_right_sizes(run: Run, tmp_path: Path, precision: str) -> None:
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
    assert plan["weight_bytes"] == data.stat().st_size
    assert sum(file.stat().st_size for file in data.parent.iterdir()) <= plan["disk_bytes"]


def test_json_is_one_object_whatever_happens(run: Run, engines: Path) -> None:
    plan = json.loads(run("--json", "--dry-run").out)
    assert (plan["directory"], plan["precision"]) == (str(engines / "tiny"), "fp32")
    made = run("--json")
    stored = json.loads((engines / "tiny" / FILE_NAME).read_text())
    assert (made.code, json.loads(made.out)) == (0, stored)
    again = run("--json")
    assert (again.code, json.loads(again.out)) == (0, stored)


@pytest.mark.parametrize("existing", [True, False], ids=["existing", "dangling"])
def test_a_linked_directory_stays_linked(run: Run, engines: Path, tmp_path: Path, existing: bool) -> None:
    real = tmp_path / "disk" / "real"
    if existing:
        real.mkdir(parents=True)
    engines.mkdir()
    (engines / "tiny").symlink_to(real)
    for arguments in ([], ["--force"]):
        assert run(*arguments).code == 0
        assert (engines / "tiny").is_symlink()
        assert names_in(engines) == {"tiny"}
        expect_engine(real)
    assert "up to date" in run().out
    (real / "notes.txt").write_text("mine")
    assert "also holds files that are not the engine's: notes.txt" in run("--force").complaint
