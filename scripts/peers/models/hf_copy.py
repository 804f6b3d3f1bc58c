"""Writes the demo model as a Hugging Face directory in float32, for transformers and other engines.

python -m scripts.peers.models.hf_copy DIRECTORY
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from export.checkpoints.fetch import open_checkpoint, packaged_gguf
from export.checkpoints.gguf import GgufCheckpoint
from export.checkpoints.models import MODELS, PackagedGguf
from export.checkpoints.safetensors import Checkpoint
from export.text.gguf_text import text_of_gguf


def tensor_names(checkpoint: Checkpoint) -> list[str]:
    """Every tensor of a bias-free Llama under its Hugging Face name."""
    arch = checkpoint.arch
    parts = ["input_layernorm", "post_attention_layernorm", *(part for parts, _, _ in arch.linears.values() for part in parts)]
    layers = [f"model.layers.{layer}.{part}.weight" for layer in range(arch.layers) for part in parts]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", *([] if arch.tied_head else ["lm_head.weight"])]


def config_of(checkpoint: GgufCheckpoint) -> dict[str, object]:
    """config.json for transformers."""
    text = text_of_gguf(checkpoint)
    stop = text.special["eos_token"]
    eos = next(token for token in text.stop if text.names[token] == stop)
    arch = asdict(checkpoint.arch)
    renamed = {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "intermediate": "intermediate_size",
        "vocab": "vocab_size",
        "rms_eps": "rms_norm_eps",
        "max_position": "max_position_embeddings",
        "tied_head": "tie_word_embeddings",
    }
    kept = {"model_type": arch["model_type"], "head_dim": arch["head_dim"], "rope_theta": checkpoint.arch.rope.theta}
    special = {"bos_token_id": text.bos, "eos_token_id": eos, "pad_token_id": eos}
    named = {new: arch[old] for old, new in renamed.items()}
    return {**kept, **named, **special, "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "dtype": "float32"}


def write_hf_directory(directory: Path) -> Path:
    """config.json, model.safetensors, tokenizer.json and tokenizer_config.json of smollm2-135m; an existing one is kept."""
    from safetensors.numpy import save_file

    source = MODELS["smollm2-135m"].target
    if not isinstance(source, PackagedGguf):
        raise TypeError("the demo model is a packaged GGUF")
    if (directory / "config.json").exists():
        return directory
    checkpoint = open_checkpoint(packaged_gguf(source))
    if not isinstance(checkpoint, GgufCheckpoint):
        raise TypeError("the demo model is a GGUF")
    directory.mkdir(parents=True, exist_ok=True)
    text = text_of_gguf(checkpoint)
    (directory / "tokenizer.json").write_text(text.tokenizer_json, encoding="utf-8")
    ends = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": text.templates["default"]}
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **ends}))
    weights = {name: checkpoint.read(name) for name in tensor_names(checkpoint)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config_of(checkpoint)))
    return directory


if __name__ == "__main__":
    write_hf_directory(Path(sys.argv[1]))
