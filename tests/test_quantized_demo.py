"""The demo model's first layers as AWQ and GPTQ store them: kept to the last bit, lossless with trees, and as close to transformers as
rounded activations allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.cli import command
from policy import FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from tests.support.kept_integers import expect_own_weights
from tests.support.planted import DummyRowDrafter, PlantedDrafter
from tests.support.prompts import PROMPTS
from tests.support.quantized_models import write_quantized

pytestmark = pytest.mark.real
LAYERS = 4


@pytest.fixture(scope="module")
def shortened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """The demo model with few layers, anew for every call."""
    import torch
    from transformers import AutoModelForCausalLM

    from scripts.peers.models.hf_copy import write_hf_directory

    directory = write_hf_directory(tmp_path_factory.mktemp("hf"))
    return lambda: AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, num_hidden_layers=LAYERS).eval()


@pytest.mark.parametrize(("scheme", "group"), [("awq", 64), ("gptq desc_act", 128)])
def test_an_import_is_exact_and_lossless(
    tmp_path: Path, shortened: Callable[[], Any], scheme: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 576 inputs the last group of 128 is half as long."""
    import torch

    model = shortened()
    write_quantized(tmp_path / "quantized", model, scheme, group=group)
    line = ["--weights", str(tmp_path / "quantized"), "--precision", "int4", "--no-draft", "--out", str(tmp_path), "--name", "engine"]
    assert run_command(command, "resps-export", [*line, "--max-context", "256"]) == 0
    own = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    expect_own_weights(tmp_path / "engine" / "target.onnx", own, LAYERS)
    assert (check_kl := _kl(tmp_path / "engine")) < 0.02, check_kl

    with Decoder(tmp_path / "engine", draft="none", threads=2) as decoder:
        ids = list(range(200, 230))
        with torch.no_grad():
            exact = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
        decoder.models.target.cache.truncate(0)
        (_, output), *_ = decoder.models.target.prefill(ids)
        logits = output.logits[-1].astype(np.float64)
        actual = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert (np.exp(exact[-1]) * (exact[-1] - actual)).sum() < 0.05
        vocab = decoder.manifest.shape.vocab
        for number, prompt in enumerate(PROMPTS[:2]):
            ids = list(decoder.encode(prompt))
            monkeypatch.setattr(decoder, "models", replace(decoder.models, drafter=DummyRowDrafter(vocab)))
            answer = decoder.generate(ids, SamplingParams(max_new_tokens=40)).tokens
            for seed, shape in enumerate((TreeSpec(4, 3, 1), TreeSpec(16, 4, 4), TreeSpec(32, 6, 4))):
                drafter = PlantedDrafter(len(ids), answer, vocab, 10 * number + seed)
                monkeypatch.setattr(decoder, "models", replace(decoder.models, drafter=drafter))
                assert decoder.generate(ids, SamplingParams(max_new_tokens=40), policy=FixedPolicy(shape)).tokens == answer


def _kl(engine: Path) -> float:
    from runtime.manifest.load import load_manifest

    return load_manifest(engine).check.mean_kl
