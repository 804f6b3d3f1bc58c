"""Writes the draft of a training run as a checkpoint that other engines read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .draft import DraftShape
from .errors import TrainingError

# The config's max_position_embeddings. Training conversations are shorter, but other engines read it as a limit (docs/lab/drafts.md).
MAX_POSITIONS = 2048


def draft_config(shape: DraftShape) -> dict[str, Any]:
    """The draft's config.json: a flat llama config, as SpecForge writes it."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": 1,
        "rms_norm_eps": shape.rms_eps,
        "hidden_act": "silu",
        "rope_theta": shape.rope.theta,
        "rope_scaling": dict(shape.rope.scaling) if shape.rope.scaling else None,
        "max_position_embeddings": MAX_POSITIONS,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "fc_norm": shape.fc_norm,
        "norm_output": shape.norm_output,
    }


def pack_run(run: Path, out: Path, form: str, verifier: str | None) -> None:
    """Write config.json and model.safetensors in bfloat16: d2t as offsets, t2d as a mask, no embedding.

    ``form``: "specforge" (flat config, midlayer.*; read by SGLang, TensorRT-LLM, vLLM) or "speculators" (nested config, layers.0.*; read by
    vLLM), which names the target, ``verifier``. Takes the draft with the best held-out chain. Raises TrainingError if ``run`` has none, or
    if the target's name is missing.
    """
    if form == "speculators" and not verifier:
        raise TrainingError("the form speculators names the target — give its name with --verifier")
    try:
        state = torch.load(run / "best.pt", map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{error.filename} is missing — give the --out of a resps-train train that has reported once") from None
    config: dict[str, Any] = state["config"]
    tokens: Tensor = state["tokens"]
    member = torch.zeros(config["vocab_size"], dtype=torch.bool)
    member[tokens] = True
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in state["draft"].items()}
    tensors |= {"d2t": tokens - torch.arange(len(tokens)), "t2d": member}
    config = {**config, "draft_vocab_size": len(tokens)}
    if form == "speculators":
        tensors = {name.replace("midlayer.", "layers.0."): value for name, value in tensors.items()}
        config = speculators_config(config, verifier, state.get("target", "llama"))  # runs before 30 November did not keep it
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def speculators_config(flat: dict[str, Any], verifier: str | None, target: str) -> dict[str, Any]:
    """The same config as the speculators library writes it. ``target``: its model_type."""
    layer = {key: value for key, value in flat.items() if key not in ("architectures", "draft_vocab_size", "fc_norm", "norm_output")}
    greedy = {"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": flat["draft_vocab_size"],
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": flat["fc_norm"],
        "norm_output": flat["norm_output"],
        "embed_requires_grad": False,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [greedy],
            "verifier": {"name_or_path": verifier, "architectures": [f"{target.capitalize()}ForCausalLM"]},
        },
        "torch_dtype": "bfloat16",
    }
