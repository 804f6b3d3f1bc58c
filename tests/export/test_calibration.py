"""The statistics of a target's inputs: those that transformers sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.calibration import InputMoments
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.cli import command
from export.graphs.int8.feedback import inverse_root
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from tests.support.quantized_models import write_quantized
from tests.support.tiny import tiny_model, write_tokenizer

TEXTS = ([5, 17, 3, 99, 20, 41, 7], [8, 8, 1], [60])
PRODUCTS = {"qkv": "self_attn.q_proj", "o": "self_attn.o_proj", "gate_up": "mlp.gate_proj", "down": "mlp.down_proj"}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_moments_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    found = InputMoments(HuggingFaceCheckpoint(tmp_path), TEXTS)
    inputs: dict[str, list[np.ndarray]] = {}

    def keep(stem: str):  # type: ignore[no-untyped-def]
        return lambda module, given, result: inputs.setdefault(stem, []).append(given[0][0].double().numpy())

    for layer, block in enumerate(model.model.layers):
        for matrix, name in PRODUCTS.items():
            block.get_submodule(name).register_forward_hook(keep(f"layers.{layer}.{matrix}"))
    model.lm_head.register_forward_hook(keep("head"))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    for stem, parts in inputs.items():  # in the order of a graph
        seen = np.concatenate(parts)
        expected = inverse_root(seen.T @ seen)
        np.testing.assert_allclose(found.inverse_root(stem), expected, atol=1e-3 * np.abs(expected).max())


def test_a_checkpoint_with_integers_in_some_matrices_is_rounded_with_error_feedback(tmp_path: Path) -> None:
    """Then a part of a joined matrix is rounded here, and the others are kept."""
    model = tiny_model("llama", num_hidden_layers=2, max_position_embeddings=128)
    write_quantized(tmp_path / "mixed", model, "mixed")
    write_tokenizer(tmp_path / "mixed")
    line = ["--weights", str(tmp_path / "mixed"), "--out", str(tmp_path / "engines"), "--name", "mixed"]
    assert run_command(command, "resps-export", [*line, "--precision", "int8", "--max-context", "64"]) == 0
    assert load_manifest(tmp_path / "engines/mixed").precision == "int8"
