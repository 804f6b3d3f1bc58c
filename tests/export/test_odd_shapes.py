"""Models of sizes that some optimization does not take: they are exported without it, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import export.build
from export.checkpoints.arch import arch_from_config
from export.errors import UnsupportedModel
from runtime import Decoder, SamplingParams
from tests.support.exporting import Run, names_in
from tests.support.tiny import random_ids, write_checkpoint

FUSED = "target.cpu.onnx"
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "heads of 10": {"head_dim": 10},
    "heads of 24": {"head_dim": 24},
    "heads of 100": {"head_dim": 100},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "7 heads share one": {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 16},
    "3 heads share one": {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1},
    "hidden size 33": {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16},
    "intermediate size 97": {"intermediate_size": 97},
    "intermediate size 1": {"intermediate_size": 1},
    "vocabulary of 333": {"vocab_size": 333, "tied": False},
    "one layer": {"num_hidden_layers": 1},
}
UNFUSED = {"heads of 10", "heads of 24", "heads of 100"}


def export_shape(run: Run, source: Path, name: str, *arguments: str) -> Any:
    model = write_checkpoint(source, **{"num_hidden_layers": 2, **SHAPES[name]})
    ended = run("--name", "odd", *arguments)
    assert ended.code == 0, ended.err
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_odd_shape_answers_as_transformers_does(run: Run, source: Path, engines: Path, name: str) -> None:
    model, prompt = export_shape(run, source, name), random_ids(9)
    assert (FUSED in names_in(engines / "odd")) == (name not in UNFUSED)
    with Decoder(engines / "odd") as decoder:
        tokens = list(decoder.stream(prompt, SamplingParams(max_new_tokens=12)).result().tokens)
    expected = list(prompt)
    with torch.no_grad():
        for _ in tokens:
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert tokens == expected[len(prompt) :]


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["heads of 10", "7 heads share one", "hidden size 33", "intermediate size 97", "vocabulary of 333"])
def test_odd_shape_with_integer_weights_passes_its_check_and_runs(run: Run, source: Path, engines: Path, name: str, precision: str) -> None:
    export_shape(run, source, name, "--precision", precision)
    with Decoder(engines / "odd") as decoder:
        assert len(decoder.stream(random_ids(9), SamplingParams(max_new_tokens=6)).result().tokens) > 0


def test_fused_graph_that_computes_something_else_is_left_out(
    run: Run, source: Path, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard graph is checked on its own, so an engine without the fused one is right."""
    original = export.build.fused_target

    def wrong(writer: Any) -> Any:
        model = original(writer)
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "GroupQueryAttention" and attribute.name == "scale":
                    attribute.f = 0.5
        return model

    monkeypatch.setattr(export.build, "fused_target", wrong)
    assert run().code == 0
    assert FUSED not in names_in(engines / "tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 15}, "heads of 15 numbers .head_dim., of which rotary embedding needs an even count"),
        ({"num_key_value_heads": 3}, "4 heads .num_attention_heads. cannot share 3 .num_key_value_heads."),
        ({"num_key_value_heads": 8}, "4 heads .num_attention_heads. cannot share 8 .num_key_value_heads."),
    ],
)
def test_shape_that_cannot_be_is_refused(source: Path, changes: Mapping[str, Any], message: str) -> None:
    config = json.loads((source / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match=message + " — "):
        arch_from_config({**config, **changes})
