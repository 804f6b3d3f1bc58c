"""Exports a large synthetic checkpoint and prints time and peak memory: memory must not grow with the checkpoint.

    python -m tests.stress.check_memory --work NEW_DIR [--gigabytes 4] [--precision fp32]

Writes a random bf16 Llama of the given size as safetensors shards of 1 GB, exports it in its own process, prints one JSON object and
removes the files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
LAYER_BYTES = 2 * (2048 * 2048 * 2 + 2 * 512 * 2048 + 3 * 2048 * 8192)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the checkpoint, in file order."""
    hidden, inner, vocab = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["vocab_size"]
    matrices = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (512, hidden),
        "self_attn.v_proj": (512, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    found |= {f"model.layers.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in matrices.items()}
    return found | {"model.norm.weight": (hidden,)}


def write_checkpoint(directory: Path, gigabytes: float) -> int:
    """Returns its size in bytes."""
    layers, random = max(6, round(gigabytes * 1e9 / LAYER_BYTES)), np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}
    size = total = 0
    directory.mkdir(parents=True)
    names = shapes(layers)
    for index, (name, shape) in enumerate(names.items()):
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
        shard[name] = (random.standard_normal(shape, np.float32) * scale + (len(shape) == 1)).astype(ml_dtypes.bfloat16)
        size += shard[name].nbytes
        if size > 1e9 or index == len(names) - 1:
            file = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(shard, directory / file)
            weight_map |= dict.fromkeys(shard, file)
            total, shard, size = total + size, {}, 0
    config = {"model_type": "llama", "num_hidden_layers": layers, "rms_norm_eps": 1e-5, "eos_token_id": 2, **SIZES}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    Tokenizer(models.BPE({"a": 0}, [])).save(str(directory / "tokenizer.json"))
    return total


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="A directory that does not exist yet.")
@click.option("--gigabytes", default=4.0, show_default=True)
@click.option("--precision", default="fp32", show_default=True)
def main(work: Path, gigabytes: float, precision: str) -> None:
    """Print {checkpoint_bytes, seconds, peak_mib}."""
    try:
        size = write_checkpoint(work / "source", gigabytes)
        code = (
            "import sys; from pathlib import Path; from export.cli import command; from runtime.console import run_command;"
            "code = run_command(command, 'resps-export', sys.argv[1:]);"
            "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]); sys.exit(code)"
        )
        arguments = ["--weights", str(work / "source"), "--out", str(work / "out"), "--precision", precision]
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - started
        peak = int(done.stdout.split()[-1]) / 1024
        click.echo(json.dumps({"checkpoint_bytes": size, "precision": precision, "seconds": round(seconds, 1), "peak_mib": round(peak)}))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
