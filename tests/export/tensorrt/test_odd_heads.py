"""Heads of a size that TensorRT's Attention operator does not take: their attention is made of products, in target and draft."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.support.tensorrt_exports import TinyModels, export_to
from tests.support.tiny import write_checkpoint
from tests.support.tiny_drafts import write_draft

pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(("head_dim", "precision"), [(10, "fp16"), (100, "int4"), (320, "bf16")])
def test_plans_of_odd_heads_are_built(tmp_path: Path, head_dim: int, precision: str) -> None:
    """The export compares each graph with the reference before it builds the plan."""
    source = TinyModels(tmp_path, write_checkpoint(tmp_path / "tiny", num_hidden_layers=4, head_dim=head_dim))
    write_draft(tmp_path / "draft", "specforge", source.model)
    more = ("--tree-sizes", "4", "--lanes", "2", "--compute-capability", "8.9", "--precision", precision)
    engine = export_to(tmp_path / "engines", source, *more, draft=head_dim == 10)
    assert (engine / "target.plan").stat().st_size > 0
    operators = {node.op_type for node in onnx.load(engine / "target.onnx", load_external_data=False).graph.node}
    assert operators >= {"Softmax"}
    assert "Attention" not in operators
