"""The names of graphs' files in an engine directory, and writing them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from .graphs.lanes.writers import DRAFT_LANES, TARGET_LANES

_FILES = {TARGET_LANES: "target.lanes.onnx", DRAFT_LANES: "draft.lanes.onnx"}


def graph_file(name: str) -> str:
    """File name of the graph ``name`` of the manifest."""
    return _FILES.get(name, f"{name}.onnx")


def save_graphs(directory: Path, models: Mapping[str, onnx.ModelProto]) -> None:
    """Write graphs, by their names in the manifest, beside their weights. Raises onnx.checker.ValidationError for a graph that is not
    valid."""
    for name, model in models.items():
        file = directory / graph_file(name)
        onnx.save(model, file)
        onnx.checker.check_model(str(file))
