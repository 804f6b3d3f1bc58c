"""Writes a Hugging Face directory anew with its matrices quantized, as a published tool stores them, and the weights that they stand for.

    python -m scripts.lab.quantized_copy --scheme awq --group 64 SOURCE DIRECTORY

DIRECTORY/quantized gets the tensors of the scheme, DIRECTORY/dense the same weights in float32, as a reference for transformers and for
`--precision fp32`. Values are rounded to the nearest: no calibration, so they are worse than the tool's own.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import click

from runtime.console import run_command
from tests.support.quantized_models import is_linear, quantize, schemes, write_safetensors


@click.command()
@click.option("--scheme", type=click.Choice(tuple(schemes(32))), required=True)
@click.option("--group", type=click.IntRange(16), default=64, show_default=True, help="Inputs that share a scale.")
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("directory", type=click.Path(path_type=Path))
def main(scheme: str, group: int, source: Path, directory: Path) -> None:
    """Write both directories."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    settings, pack = schemes(group)[scheme]
    for name in ("quantized", "dense"):
        shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin*"), dirs_exist_ok=True)
    write_safetensors(directory / "quantized" / "model.safetensors", quantize(model, pack, is_linear))
    model.save_pretrained(directory / "dense")
    config = directory / "quantized" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), "quantization_config": settings}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command(main, "quantized_copy"))
