"""Does a target's TensorRT plan compute what its ONNX file computes? polygraphy runs and compares both.

    python -m scripts.gpu.compare_plan --engine-dir engines/smollm2-135m-trt

polygraphy's default inputs are random numbers, not token ids and cache slots. So the inputs are made here: a random tree of
tokens behind a cache of random values, one pass for each optimization profile. ONNX Runtime computes the reference on the CPU, which works
for fp32, fp16, int8 and int4. Prints JSON by profile; differences are relative to the largest absolute value of the reference's output.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from runtime.backends.base import dtype_of
from runtime.console import run_command
from runtime.decoding.tree import Tree
from runtime.errors import EngineDirError, RespsError
from runtime.manifest.load import find_engine_dir, load_manifest
from runtime.manifest.schema import Manifest
from scripts import options
from scripts.gpu.demo import export_demo

MAX_PAST = 100
TOLERANCES = {"fp32": 1e-3}
LOW_PRECISION = 3e-2
"""Tolerance of 16-bit arithmetic: kernels of GPU and CPU round at different places, and errors grow over the layers."""


def pass_inputs(manifest: Manifest, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the target graph for one pass with the given sizes of its dynamic dimensions n (rows), r (rows with logits) and span."""
    random, graph, (rows, span) = np.random.default_rng(seed), manifest.graphs["target"], (sizes["n"], sizes["span"])
    past = min(MAX_PAST, span - rows)
    parents = [-1, *(int(random.integers(row)) for row in range(1, rows))]
    tree = Tree.from_parents(random.integers(0, manifest.shape.vocab, rows).tolist(), parents)
    inputs = {
        "tokens": tree.tokens[None],
        "depth": tree.depth[None],
        "tree_mask": tree.mask,
        "past": np.array([past]),
        "slots": np.arange(span),
        "rows": np.arange(rows)[-sizes["r"] :],
    }
    for name, tensor in graph.inputs.items():
        if name.startswith("past."):
            cache = random.normal(size=[sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape])
            cache[:, :, past:] = 0
            inputs[name] = cache.astype(dtype_of(tensor.dtype))
    return inputs


def onnx_runner(file: Path) -> Any:
    """polygraphy's runner for an ONNX file in ONNX Runtime on the CPU, with the session options of the runtime."""
    from polygraphy.backend.onnxrt import OnnxrtRunner

    from runtime.backends.cpu.onnxruntime import open_session

    return OnnxrtRunner(lambda: open_session(file, 1), name=str(file))


def plan_runner(directory: Path, manifest: Manifest, profile: int) -> Any:
    """polygraphy's runner for the target's plan, in the form of TensorRT that built it."""
    import polygraphy.config

    assert manifest.tensorrt is not None
    polygraphy.config.USE_TENSORRT_RTX = manifest.tensorrt.flavour == "tensorrt_rtx"  # read by the next import, once per process
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    plan = directory / str(manifest.graphs["target"].plan)
    return TrtRunner(EngineFromBytes(BytesFromPath(str(plan))), name=str(plan), optimization_profile=profile)


def compare(reference: Any, other: Any, inputs: Mapping[str, np.ndarray], tolerance: float) -> dict[str, Any]:
    """Run both on ``inputs``. The result passes if no value of any output differs by more than ``tolerance`` times the largest absolute
    value of the reference's output. ``same_argmax``: share of rows with the same next token. Raises PolygraphyException."""
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    with contextlib.redirect_stdout(sys.stderr), G_LOGGER.verbosity(G_LOGGER.ERROR):  # polygraphy logs to stdout
        results = Comparator.run([reference, other], data_loader=[dict(inputs)])
        (_, (expected,)), (_, (actual,)) = results
        scales = {name: float(np.abs(np.asarray(values, np.float64)).max()) for name, values in expected.items()}
        allowed = {name: tolerance * scale for name, scale in scales.items()}
        allowed["next_token"] = np.inf  # the distance of two ids means nothing
        compared = Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(atol=allowed, rtol=0.0, check_error_stat="max"))
    ((outputs,),) = (compared[0][pair] for pair in compared[0])
    differences = {name: result.max_absdiff / (scales[name] or 1.0) for name, result in outputs.items() if name != "next_token"}
    return {
        "passed": bool(compared),
        "logits": differences["logits"],
        "features": differences["features"],
        "cache": max(value for name, value in differences.items() if name.startswith("present.")),
        "same_argmax": float((expected["next_token"] == actual["next_token"]).mean()),
    }


def compare_plan(directory: Path) -> dict[str, Any]:
    """The target's plan against its ONNX file in every optimization profile, by the number of rows. Raises EngineDirError if there is no
    plan or polygraphy cannot run it here."""
    from polygraphy.exception import PolygraphyException

    manifest = load_manifest(directory)
    if manifest.tensorrt is None:
        raise EngineDirError(f"{directory} has no TensorRT plans — export with --backend tensorrt")
    graph, tolerance = manifest.graphs["target"], TOLERANCES.get(manifest.precision, LOW_PRECISION)
    report: dict[str, Any] = {"precision": manifest.precision, "tensorrt": manifest.tensorrt.flavour, "tolerance": tolerance}
    for profile, ranges in enumerate(graph.profiles):
        sizes = {name: best for name, (_, best, _) in ranges.items()}
        runners = onnx_runner(directory / graph.file), plan_runner(directory, manifest, profile)
        try:
            report[f"{sizes['n']} rows"] = compare(*runners, pass_inputs(manifest, sizes), tolerance)
        except PolygraphyException as error:
            reason = str(error).removesuffix(".")
            raise EngineDirError(f"polygraphy cannot run {graph.plan}: {reason} — it needs an NVIDIA GPU and libcudart.so") from error
    return report


def compare_demo(work: Path, weights: str | None) -> dict[str, Any]:
    """`compare_plan` for the demo model, which is exported to ``work`` unless it is there already."""
    report: dict[str, Any] = {}
    for precision in ("fp32", "fp16"):
        try:
            report[precision] = compare_plan(export_demo(work, weights, f"tensorrt-{precision}", precision))
        except (RespsError, RuntimeError) as error:
            report[precision] = {"error": str(error)}
    return report


@click.command()
@options.engine_dir
def main(engine_dir: Path) -> None:
    """Compare the target's plan with its ONNX file."""
    report = compare_plan(find_engine_dir(engine_dir))
    click.echo(json.dumps(report, indent=1))
    if not all(result["passed"] for result in report.values() if isinstance(result, dict)):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    sys.exit(run_command(main, "compare_plan"))
