"""Reading config.json as transformers 4 and 5 write it, and configs that are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from export.checkpoints.arch import Arch, arch_from_config
from export.checkpoints.rope import Rope
from export.errors import UnsupportedModel
from export.graphs.precision import PRECISIONS
from export.plan import make_plan
from tests.support.tiny import ARCHITECTURES, tiny_model

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 128256}
COMMON = {"hidden": 4096, "layers": 32, "heads": 32, "intermediate": 14336, "vocab": 128256}

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def arch_of(kind: str, **changes: Any) -> Arch:
    """An Arch with the sizes of COMMON and, unless changed, what transformers assumes for keys that a config lacks."""
    usual = {"kv_heads": 32, "head_dim": 128, "rms_eps": 1e-6, "rope": Rope(10000.0), "max_position": 2048, "tied_head": False}
    return Arch(kind, **COMMON, **{**usual, **changes})


# Published config.json files as transformers 4 wrote them, reduced to the relevant keys, and the Arch that each must give.
PUBLISHED: Mapping[str, tuple[Mapping[str, Any], Arch]] = {
    "llama-2-style": (
        {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "rope_scaling": None},
        arch_of("llama", rms_eps=1e-5, max_position=4096),
    ),
    "llama-3.1": (
        {
            "model_type": "llama",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {**LLAMA3, "rope_type": "llama3"},
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
        },
        arch_of("llama", kv_heads=8, rms_eps=1e-5, rope=Rope(500000.0, {**LLAMA3, "rope_type": "llama3"}), max_position=131072),
    ),
    "llama-with-biases": (
        {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True, "head_dim": 64},
        arch_of("llama", head_dim=64, tied_head=True, qkv_bias=True, output_bias=True),
    ),
    "mistral": (
        {
            "model_type": "mistral",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 32768,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
        arch_of("mistral", kv_heads=8, rms_eps=1e-5, max_position=32768, window=4096),
    ),
    "qwen2": (
        {
            "model_type": "qwen2",
            "num_key_value_heads": 4,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "sliding_window": 131072,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        arch_of("qwen2", kv_heads=4, rope=Rope(1000000.0), max_position=32768, tied_head=True, qkv_bias=True),
    ),
    "qwen2-with-a-window": (
        {
            "model_type": "qwen2",
            "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "sliding_window": 16384,
            "use_sliding_window": True,
        },
        arch_of("qwen2", rope=Rope(1000000.0), max_position=32768, qkv_bias=True, window=16384),
    ),
    "qwen3-yarn": (
        {
            "model_type": "qwen3",
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000,
            "rope_scaling": YARN,
            "attention_bias": False,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        arch_of("qwen3", kv_heads=8, rope=Rope(1000000.0, YARN), max_position=131072, qk_norm=True),
    ),
}


def as_transformers5(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with its rotary settings in ``rope_parameters``, as transformers 5 writes it."""
    moved = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    return {**moved, "rope_parameters": {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_forms_of_config_mean_the_same(name: str) -> None:
    config, expected = PUBLISHED[name]
    assert arch_from_config({**SIZES, **config}) == expected
    assert arch_from_config(as_transformers5({**SIZES, **config})) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_config_as_transformers_writes_it(tmp_path: Path, name: str, tied: bool) -> None:
    model = tiny_model(name, tied=tied)
    model.config.save_pretrained(tmp_path)
    arch = arch_from_config(json.loads((tmp_path / "config.json").read_text()))
    attention = model.model.layers[0].self_attn
    assert (arch.layers, arch.hidden, arch.vocab) == (len(model.model.layers), *reversed(model.model.embed_tokens.weight.shape))
    assert (arch.heads * arch.head_dim, arch.hidden) == tuple(attention.q_proj.weight.shape)
    assert (arch.kv_heads * arch.head_dim, arch.hidden) == tuple(attention.k_proj.weight.shape)
    assert arch.qkv_bias == (attention.q_proj.bias is not None)
    assert arch.output_bias == (attention.o_proj.bias is not None)
    assert arch.qk_norm == hasattr(attention, "q_norm")
    assert (arch.tied_head, arch.window) == (tied, None)


def test_head_dim_of_qwen3_does_not_follow_from_its_width() -> None:
    """Qwen3's config class has its own default for head_dim, which early checkpoints rely on."""
    config = {**SIZES, "hidden_size": 1024, "num_attention_heads": 16}
    assert arch_from_config({**config, "model_type": "qwen3"}).head_dim == 128
    assert arch_from_config({**config, "model_type": "llama"}).head_dim == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "architecture 'gemma3' is not supported — supported: llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "architecture None is not supported"),
        ({"mlp_bias": True}, "only SwiGLU without bias"),
        ({"hidden_act": "gelu"}, "only SwiGLU without bias"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' is not supported — supported: default, linear"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope scaling 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "config.json lacks 'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial"),
        ({"hidden_size": "wide"}, "config.json .*'wide'"),
        ({"num_attention_heads": None}, "config.json .*num_attention_heads is None"),
        ({"num_attention_heads": 0}, "config.json .*num_attention_heads is 0, which is out of range"),
        ({"num_hidden_layers": -1}, "config.json .*out of range"),
        ({"head_dim": 1 << 31}, "config.json .*out of range"),
    ],
)
def test_configs_whose_graph_would_not_be_exact_are_refused(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message) as caught:
        arch_from_config({**SIZES, "model_type": "llama", **change})
    assert "\n" not in str(caught.value)
    assert " — " in str(caught.value)


@pytest.mark.parametrize("key", SIZES)
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in SIZES.items() if name != key}
    with pytest.raises(UnsupportedModel, match=f"config.json lacks '{key}' — "):
        arch_from_config({**config, "model_type": "llama"})


@pytest.mark.parametrize(("layers", "captured"), [(32, (2, 16, 29)), (36, (2, 18, 33)), (6, (2, 3, 3)), (2, (1, 1, 0)), (1, (0, 0, 0))])
def test_captured_layers(layers: int, captured: tuple[int, ...]) -> None:
    assert arch_from_config({**SIZES, "model_type": "llama", "num_hidden_layers": layers}).captured == captured


@pytest.mark.parametrize(
    ("change", "max_context", "context", "capacity"),
    [
        ({}, 1000, 1000, 1088),  # rounded up to whole spans, with room for the largest tree
        ({}, 100000, 8192, 8256),
        ({"model_type": "mistral", "sliding_window": 512}, 4096, 512, 576),
        ({"model_type": "mistral", "sliding_window": 512}, 300, 300, 384),
        ({"model_type": "qwen2", "sliding_window": 512}, 4096, 4096, 4160),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True}, 4096, 512, 576),
        ({"model_type": "llama", "sliding_window": 512}, 4096, 4096, 4160),  # Llama has no sliding window
    ],
)
def test_context_is_limited_by_the_model(change: Mapping[str, Any], max_context: int, context: int, capacity: int) -> None:
    arch = arch_from_config({**SIZES, "model_type": "llama", "max_position_embeddings": 8192, **change})
    plan = make_plan(Path("engines/x"), "x", arch, PRECISIONS["fp32"], max_context, 128)
    assert (plan.context, plan.capacity) == (context, capacity)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rms_norm_eps", value) for value in (NAN, INFINITE, 0, -1e-5, "1e-5", True)),
        *(("rope_theta", value) for value in (NAN, INFINITE, 0, -1.0, "10000")),
        *(("num_hidden_layers", value) for value in (2.5, NAN, INFINITE, True, "32", 0)),
        *(("max_position_embeddings", value) for value in (0, -5, 0.5, "4096")),
        *(("sliding_window", value) for value in (0, -1, 16.5, "4096")),
        *(
            (key, 1.5)
            for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "intermediate_size")
        ),
        *(("factor", value) for value in (0, -2.0, NAN, INFINITE, "4", None)),
        *((key, 0) for key in ("low_freq_factor", "high_freq_factor")),
        ("original_max_position_embeddings", -1),
    ],
)
def test_a_number_that_would_give_nonsense_is_refused_by_its_key(key: str, value: Any) -> None:
    """Mistral has a window, and Llama 3's scaling the most settings."""
    config = {**SIZES, "model_type": "mistral", "rope_scaling": {**LLAMA3, "rope_type": "llama3"}}
    (config["rope_scaling"] if key in LLAMA3 else config)[key] = value
    with pytest.raises(UnsupportedModel, match=rf"^config.json holds a value that cannot be used: {key} is .* — download it again$"):
        arch_from_config(config)


@pytest.mark.parametrize("key", ["factor", "attention_factor", "beta_fast", "mscale"])
def test_settings_of_yarn_are_numbers_above_zero(key: str) -> None:
    scaling = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, key: -1.0}
    with pytest.raises(UnsupportedModel, match=f"{key} is -1.0, not a number above zero — "):
        arch_from_config({**SIZES, "model_type": "llama", "rope_scaling": scaling})


def test_whole_numbers_may_be_written_as_floats_and_a_window_may_be_null() -> None:
    arch = arch_from_config({**SIZES, "model_type": "mistral", "num_hidden_layers": 3.0, "sliding_window": None})
    assert (arch.layers, type(arch.layers), arch.window) == (3, int, None)
