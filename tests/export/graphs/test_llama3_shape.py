"""llama3-8b and its draft at a sixteenth of their size, in the file formats of Meta and of EAGLE's authors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.cli import command
from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from tests.support.tiny import LLAMA3, tiny_model, write_tokenizer

HIDDEN, VOCAB, DRAFT_VOCAB = 256, 128256 // 16, 2000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """resps-export --model llama3-8b --weights DIR --draft-weights DIR2."""
    root = tmp_path_factory.mktemp("llama3")
    target, draft = root / "target", root / "draft"
    model = tiny_model(
        "llama",
        tied=False,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=896,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **LLAMA3, "original_max_position_embeddings": 8192},
    )
    model.to(torch.bfloat16).save_pretrained(target, max_shard_size="4MB")
    write_tokenizer(target)
    assert len(list(target.glob("*.safetensors"))) > 1
    write_eagle(draft)
    arguments = [
        "--model",
        "llama3-8b",
        "--weights",
        str(target),
        "--draft-weights",
        str(draft),
        "--out",
        str(root),
        "--max-context",
        "512",
    ]
    assert run_command(command, "resps-export", arguments) == 0
    return root / "llama3-8b"


def write_eagle(directory: Path) -> None:
    """Write a draft as yuhuili/EAGLE3-LLaMA3.1-Instruct-8B: a pickle in fp16, no embedding, no rope settings, d2t as offsets."""
    generator = torch.Generator().manual_seed(1)

    def matrix(outputs: int, inputs: int) -> torch.Tensor:
        return (torch.randn(outputs, inputs, generator=generator) * 1.5 * inputs**-0.5).half()

    layer = {
        "self_attn.q_proj": matrix(256, 2 * HIDDEN),
        "self_attn.k_proj": matrix(64, 2 * HIDDEN),
        "self_attn.v_proj": matrix(64, 2 * HIDDEN),
        "self_attn.o_proj": matrix(HIDDEN, 256),
        "mlp.gate_proj": matrix(896, HIDDEN),
        "mlp.up_proj": matrix(896, HIDDEN),
        "mlp.down_proj": matrix(HIDDEN, 896),
    }
    norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    tokens = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
    member = torch.zeros(VOCAB, dtype=torch.bool)
    member[tokens] = True
    tensors = {f"midlayer.{name}.weight": value for name, value in layer.items()}
    tensors |= {f"midlayer.{name}.weight": torch.ones(HIDDEN).half() for name in norms}
    tensors |= {
        "fc.weight": matrix(HIDDEN, 3 * HIDDEN),
        "norm.weight": torch.ones(HIDDEN).half(),
        "lm_head.weight": matrix(DRAFT_VOCAB, HIDDEN),
    }
    tensors |= {"d2t": tokens - torch.arange(DRAFT_VOCAB), "t2d": member}
    directory.mkdir()
    torch.save(tensors, directory / "pytorch_model.bin")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 896,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "vocab_size": VOCAB,
        "draft_vocab_size": DRAFT_VOCAB,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(config))


def test_it_runs_losslessly(engine: Path) -> None:
    with Decoder(engine, threads=1) as decoder:
        assert decoder.draft == "eagle+ngram"
        assert decoder.manifest.shape.captured_layers == (2, 4, 5)
        ask: Callable[[TreeSpec, SamplingParams], tuple[int, ...]] = lambda spec, sampling: (  # noqa: E731
            decoder.generate("the cat sat on the mat", replace(sampling, max_new_tokens=32), policy=FixedPolicy(spec)).tokens
        )
        for sampling in (SamplingParams(), SamplingParams(temperature=1.0, seed=7)):
            plain = ask(PLAIN, sampling)
            assert len(plain) == 32
            for spec in (TreeSpec(2, 1, 1), TreeSpec(16, 5, 4), TreeSpec(60, 8, 10)):
                assert ask(spec, sampling) == plain
