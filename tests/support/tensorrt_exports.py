"""Runs of resps-export --backend tensorrt on tiny models, for tests that have TensorRT-RTX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.cli import command
from export.tensorrt.builder import parse_graph
from runtime.console import run_command
from runtime.manifest.graphs import File, Graph, sha256_of
from tests.support.ended import Ended

LAYERS, SIZES, LANES = 6, (1, 2, 4, 8, 16), 6
GRAPHS = ("target", "sample", "fuse", "draft", "expand", "tree")
Run = Callable[..., Ended]


@dataclass(frozen=True)
class TinyModels:
    """A tiny target and its draft on disk."""

    root: Path
    model: Any

    @property
    def target(self) -> Path:
        return self.root / "tiny"

    @property
    def draft(self) -> Path:
        return self.root / "draft"


def export_to(out: Path, source: TinyModels, *more: str, draft: bool = True) -> Path:
    """Run the command; returns the only directory in ``out``."""
    drafted = ["--draft-weights", str(source.draft)] if draft else []
    line = ["--weights", str(source.target), *drafted, "--out", str(out), "--backend", "tensorrt", "--max-context", "64", *more]
    assert run_command(command, "resps-export", line) == 0
    (directory,) = out.iterdir()
    return directory


def expect_caches_updated_in_place(engine: Path, target_layers: int, kind: str = "") -> None:
    """TensorRT has a cache update, not a copy, for the keys and the values of every layer of target and draft. ``kind``: .lanes for those
    with lanes."""
    import tensorrt_rtx as trt

    for name, layers in ((f"target{kind}", target_layers), (f"draft{kind}", 1)):
        network = parse_graph(trt, engine / f"{name}.onnx").network
        kinds = Counter(network.get_layer(index).type for index in range(network.num_layers))
        assert kinds[trt.LayerType.KV_CACHE_UPDATE] == 2 * layers
        assert kinds[trt.LayerType.ATTENTION_INPUT] == layers


def unbuilt(directory: Path, graph: Graph, *_: Any) -> File:
    """In place of export.tensorrt.plans.build_plan, where no plan is needed; the emulated GPU tells plans by their bytes."""
    plan = directory / str(graph.plan)
    plan.write_text(graph.file)
    return File(sha256_of(plan), plan.stat().st_size)
