"""Writes a checkpoint with random weights in the shape of a real model, to measure exports of that size.

    python -m scripts.lab.random_checkpoint NEW_DIR [--layers 32]

The shape is Llama-3.1-8B's: 16 GB of bfloat16 in safetensors shards of at most 5 GB, with index, config and a tokenizer. Tensors are
written a piece at a time, so memory stays small. Its answers are noise; sizes, times and memory are those of the real model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from ml_dtypes import bfloat16
from tokenizers import Tokenizer, models, pre_tokenizers

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
SHARD_BYTES = 5_000_000_000
PIECE = 1 << 22  # numbers drawn at a time


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes, in file order."""
    hidden, inner, vocab, kv = 4096, 14336, 128256, 1024
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    found |= {f"model.layers.{index}.{name}.weight": shape for index in range(layers) for name, shape in layer.items()}
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def pieces(shape: tuple[int, ...], random: np.random.Generator) -> Iterator[bytes]:
    """A tensor's bytes: normal weights of a layer that keeps its inputs' size, norms around 1."""
    left, scale = math.prod(shape), 0.1 if len(shape) == 1 else shape[-1] ** -0.5
    while left:
        values = random.standard_normal(min(left, PIECE), np.float32) * np.float32(scale)
        left -= len(values)
        yield (values + 1 if len(shape) == 1 else values).astype(bfloat16).tobytes()


def shards(layers: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of each file."""
    found: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes(layers).items():
        size += 2 * math.prod(shape)
        if size > SHARD_BYTES and found[-1]:
            found.append({})
            size = 2 * math.prod(shape)
        found[-1][name] = shape
    return found


def write_shard(file: Path, tensors: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    """One safetensors file: the length of the header, the header, the tensors one after the other."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            for piece in pieces(shape, random):
                opened.write(piece)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--layers", default=32, show_default=True, type=click.IntRange(1))
def main(directory: Path, layers: int) -> None:
    """Write the checkpoint into DIRECTORY, which must not exist."""
    directory.mkdir(parents=True)
    random, weight_map, files = np.random.default_rng(0), {}, shards(layers)
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_shard(directory / name, tensors, random)
        weight_map |= dict.fromkeys(tensors, name)
        click.echo(f"{name}: {(directory / name).stat().st_size >> 20} MiB")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": layers}, indent=1))
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(LLAMA_8B["vocab_size"])}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))


if __name__ == "__main__":
    main()
