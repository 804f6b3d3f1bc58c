"""What does drafting cost if one pass guesses all levels? Random P-EAGLE and DFlash drafts of the demo's size against its EAGLE-3 draft.

    python -m scripts.lab.bench_one_pass --engine-dir EAGLE3_DIR --out FOLDER [--precision int8]

Exports the demo with each draft to FOLDER, unless it is there. Every repeat times a pass of one row, and drafting right after a pass of the
target, which evicts the draft's weights from the caches as in service. Prints medians, and drafting as a share of the pass of one row.
Nothing is said about acceptance: the weights are random.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import click
import numpy as np
from safetensors.numpy import save_file

from export.cli import command as export
from policy import TreeSpec
from runtime import Decoder
from runtime.console import run_command
from runtime.decoding.tree import Tree

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 576, 9, 3, 64, 1536, 49152
COMMITTED, PROMPT, WIDTH = 2, 500, 2
# name -> kind, layers, rows of a block, draft vocabulary, depths that are timed
DRAFTS = {
    "dflash-16": ("dflash", 5, 16, VOCAB, (1, 5, 15)),
    "dflash-16-8k": ("dflash", 5, 16, 8192, (1, 5, 15)),
    "dflash-8-8k": ("dflash", 5, 8, 8192, (1, 5)),
    "p-eagle-4": ("p-eagle", 4, 8, 8192, (1, 3, 5, 8)),
}


def write_random(directory: Path, kind: str, layers: int, rows: int, vocab: int) -> None:
    """A draft with random weights."""
    random, dflash = np.random.default_rng(0), kind == "dflash"
    captured = 5 if dflash else 3
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (HIDDEN, captured * HIDDEN), "norm.weight": (HIDDEN,)}
    for layer in range(layers):
        stem, inputs = f"layers.{layer}.", HIDDEN if dflash or layer else 2 * HIDDEN
        norms = ["input_layernorm", "post_attention_layernorm", *([] if dflash or layer else ["hidden_norm"])]
        shapes |= {f"{stem}{name}.weight": (HIDDEN,) for name in norms}
        heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
        shapes |= {f"{stem}self_attn.{part}_proj.weight": (count * HEAD_DIM, inputs) for part, count in heads.items()}
        shapes |= {f"{stem}self_attn.{part}_norm.weight": (HEAD_DIM,) for part in ("qk" if dflash else "")}
        shapes |= {f"{stem}self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM), f"{stem}mlp.down_proj.weight": (HIDDEN, INTERMEDIATE)}
        shapes |= {f"{stem}mlp.{part}_proj.weight": (INTERMEDIATE, HIDDEN) for part in ("gate", "up")}
    shapes |= {"hidden_norm.weight": (HIDDEN,)} if dflash else {"mask_hidden": (1, 1, captured * HIDDEN)}
    tensors = {name: random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32) + ("norm" in name) for name, shape in shapes.items()}
    if vocab < VOCAB:
        tensors["lm_head.weight"] = random.normal(0, 0.04, (vocab, HIDDEN)).astype(np.float32)
        tensors["d2t"] = np.zeros(vocab, np.int64)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": HEADS}
    sizes |= {"num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB, "max_position_embeddings": 8192}
    config = {**sizes, "draft_vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "model_type": "qwen3" if dflash else "llama"}
    if dflash:
        used = {"mask_token_id": 1, "target_layer_ids": [1, 7, 13, 19, 26], "block_size": rows}
        config |= {"architectures": ["DFlashDraftModel"], "dflash_config": used}
    else:
        config |= {"architectures": ["LlamaForCausalLMEagle3"], "ptd_token_id": 1, "num_depths": rows}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")


def exported(out: Path, name: str, precision: str) -> Path:
    """The engine directory with this draft."""
    kind, layers, rows, vocab, _ = DRAFTS[name]
    directory = out / f"{name}-{precision}"
    if not (directory / "manifest.json").is_file():
        write_random(out / "drafts" / name, kind, layers, rows, vocab)
        arguments = ["--model", "smollm2-135m", "--draft-weights", str(out / "drafts" / name), "--precision", precision]
        if code := run_command(export, "resps-export", [*arguments, "--out", str(out), "--name", directory.name]):
            raise SystemExit(code)
    return directory


def milliseconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)


def timed(decoder: Decoder, depth: int) -> float:
    """Milliseconds to draft ``depth`` levels after a round that committed COMMITTED tokens."""
    target, drafter = decoder.models.target, decoder.models.model_drafter
    assert drafter is not None
    output = target.verify(Tree.chain([7] * COMMITTED))

    def draft() -> None:
        drafter.extend([7] * COMMITTED, output, range(COMMITTED))
        drafter.draft(7, TreeSpec(min(8, TreeSpec(1, depth, WIDTH).capacity), depth, WIDTH))

    return milliseconds(draft)


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True, help="The demo with its EAGLE-3 draft.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the drafts and engines.")
@click.option("--precision", default="fp32", help="Of the target.")
@click.option("--threads", type=int, default=2)
@click.option("--repeats", type=int, default=30)
@click.option("--export-only", is_flag=True, help="Time nothing.")
def main(engine_dir: Path, out: Path, precision: str, threads: int, repeats: int, export_only: bool) -> None:
    """Time drafting in one pass against drafting level by level."""
    directories = {name: exported(out, name, precision) for name in DRAFTS}
    if export_only:
        return
    for name, directory in {"eagle-3": engine_dir, **directories}.items():
        depths = DRAFTS[name][-1] if name in DRAFTS else (1, 3, 5)
        with Decoder(directory, draft="eagle", threads=threads, lanes=1) as decoder:
            one, found = measured(decoder, depths, repeats)
        click.echo(f"{name:14} a pass of one row {one:6.2f} ms")
        for depth, taken in found.items():
            click.echo(f"{'':14} {depth:2} levels        {taken:6.2f} ms, {taken / one:.2f} of it")


def measured(decoder: Decoder, depths: tuple[int, ...], repeats: int) -> tuple[float, dict[int, float]]:
    """Medians: of a pass of one row, and of drafting by depth."""
    target, drafter = decoder.models.target, decoder.models.model_drafter
    assert drafter is not None
    for chunk, output in target.prefill([7] * PROMPT):
        drafter.extend(chunk, output, range(len(chunk)))
    plain: list[float] = []
    found: dict[int, list[float]] = {depth: [] for depth in depths}
    for _ in range(repeats + 1):
        plain.append(milliseconds(lambda: target.verify(Tree.chain([7]))))
        for depth, times in found.items():
            times.append(timed(decoder, depth))
    return statistics.median(plain[1:]), {depth: statistics.median(times[1:]) for depth, times in found.items()}  # the first binds buffers


if __name__ == "__main__":
    main()
