"""Planned sizes equal the file sizes, because the same writers count and write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import huggingface_hub
import numpy as np
import onnx
import pytest

from export.checkpoints.arch import Arch, arch_from_config
from export.checkpoints.draft_arch import draft_arch
from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.cli import command
from export.draft_build import draft_writers
from export.graphs.precision import BACKENDS, PRECISIONS
from export.graphs.target import TargetWriter
from export.graphs.weights import WeightFile
from export.plan import PlannedDraft, make_plan
from runtime.console import run_command
from tests.support.tiny import tiny_model
from tests.support.tiny_drafts import write_draft

CASES = [(backend, precision) for backend, precisions in BACKENDS.items() for precision in precisions]
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
EAGLE_8B = {**LLAMA_8B, "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 32000}
CONTEXT = 64


def cache_bytes(model: onnx.ModelProto, capacity: int) -> int:
    """Size of the graph's cache tensors with all slots."""
    tensors = [each.type.tensor_type for each in model.graph.input if each.name.startswith("past.")]
    sizes = [[dim.dim_value or capacity for dim in each.shape.dim] for each in tensors]
    kinds = [onnx.helper.tensor_dtype_to_np_dtype(each.elem_type) for each in tensors]
    return sum(int(np.prod(shape)) * kind.itemsize for shape, kind in zip(sizes, kinds, strict=True))


@pytest.mark.parametrize(("backend", "precision"), CASES)
@pytest.mark.parametrize("name", ["llama-bias", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_planned_bytes_are_the_files(tmp_path: Path, name: str, backend: str, precision: str, tied: bool) -> None:
    model = tiny_model(name, tied=tied, num_hidden_layers=3)
    model.save_pretrained(tmp_path)
    write_draft(tmp_path / "draft", "specforge", model, fc_norm=tied, embedding="own" if tied else "shared", own_head=not tied)
    checkpoint, kind = HuggingFaceCheckpoint(tmp_path), BACKENDS[backend][precision]
    draft = open_draft(tmp_path / "draft", checkpoint)
    planned = PlannedDraft("draft", draft.arch, precision)
    plan = make_plan(tmp_path, "tiny", checkpoint.arch, kind, CONTEXT, 16, planned, backend=backend, tree_sizes=(1, 8))
    static = backend == "tensorrt"
    with WeightFile(tmp_path / "target.data") as weights:
        target = TargetWriter(checkpoint.arch, checkpoint, kind, plan.capacity, weights, static=static)
        list(target.build())
    with WeightFile(tmp_path / "draft.data") as weights:
        _, drafted = draft_writers(draft.arch, draft, kind, kind, CONTEXT, weights, target.embedding, static)
    sizes = [(tmp_path / file).stat().st_size for file in ("target.data", "draft.data")]
    assert [plan.weight_bytes, plan.draft_bytes] == sizes
    assert plan.cache_bytes == cache_bytes(target.model(), plan.capacity) + cache_bytes(drafted.model(), drafted.capacity)


@pytest.mark.parametrize(("backend", "precision"), CASES)
def test_planning_a_large_model_takes_no_time(backend: str, precision: str) -> None:
    arch, bits = arch_from_config(LLAMA_8B), {"fp32": 32, "fp8": 8, "int8": 8, "int4": 4}.get(precision, 16)
    draft = PlannedDraft("eagle", draft_arch(EAGLE_8B, arch), precision)
    started = perf_counter()
    plan = make_plan(Path("engines/x"), "x", arch, BACKENDS[backend][precision], 4096, 128, draft, backend=backend)
    assert perf_counter() - started < 1
    parameters, table = 8_030_261_248, 128256 * 4096  # the model card's number
    if bits > 8:
        assert 1 <= plan.weight_bytes / (parameters * bits // 8) < 1.001
    else:  # with scales; in int4 the head has eight bits
        quantized = plan.weight_bytes - table * (1 if backend == "onnxruntime" else 2)  # TensorRT keeps the embedding in float16
        assert 1 < quantized / ((parameters - table) * bits / 8) < 1.4


def q4_1_bytes(arch: Arch) -> int:
    """What llama.cpp's Q4_1 takes of an untied model: 20 bytes for 32 weights of the layers and the embedding, 210 for 256 of the head
    (Q6_K), four for each weight of a norm."""
    matrices = arch.layers * sum(outputs * inputs for _, outputs, inputs in arch.linears.values())
    table = arch.vocab * arch.hidden
    return (matrices + table) * 20 // 32 + table * 210 // 256 + (2 * arch.layers + 1) * arch.hidden * 4


def test_int4_takes_little_more_than_q4_1() -> None:
    arch = arch_from_config(LLAMA_8B)
    assert q4_1_bytes(arch) == pytest.approx(5.12e9, rel=1e-3)  # the published file has 5.13e9 bytes, with its tokenizer
    plan = make_plan(Path("engines/x"), "x", arch, PRECISIONS["int4"], 4096, 128)
    assert plan.weight_bytes <= 1.06 * q4_1_bytes(arch)


def test_a_tied_head_of_integers_is_stored_once() -> None:
    arch = replace(arch_from_config(LLAMA_8B), tied_head=True)
    for precision in ("int8", "int4"):
        tied, untied = (
            make_plan(Path("engines/x"), "x", each, PRECISIONS[precision], 4096, 128).weight_bytes
            for each in (arch, replace(arch, tied_head=False))
        )
        assert untied - tied >= arch.vocab * arch.hidden


def test_a_dry_run_of_a_quantized_repository_says_what_it_cannot_know(
    source: Path, engines: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((source / "config.json").read_text())
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(source))
    line = ["--weights", "owner/small", "--out", str(engines), "--precision", "int8", "--dry-run"]
    assert run_command(command, "resps-export", line) == 0
    ended = capfd.readouterr()
    assert "which integers can be kept is seen when they are downloaded" in ended.err
    assert "not rotated" in ended.out
    assert run_command(command, "resps-export", [*line, "--requantize"]) == 0
    assert "not rotated" not in capfd.readouterr().out
