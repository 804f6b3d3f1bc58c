"""Engines of the same models for the CPU and for TensorRT."""

from __future__ import annotations

from pathlib import Path

from tests.support.eagle_engines import export, write_echo

SIZES = (1, 2, 5, 16, 40)
"""Nodes of the trees that have a profile."""


def make_engines(folder: Path, *more: str) -> tuple[Path, Path]:
    """Engine directories in ``folder`` for the CPU and for TensorRT, with the same weights in fp32. ``more``: options of the latter."""
    write_echo(folder / "target", folder / "draft")
    sizes = "--max-context", "250", "--prefill-rows", "16"
    host = export(folder / "target", folder / "draft", folder / "host", *sizes)
    precise = "--backend", "tensorrt", "--precision", "fp32", "--draft-precision", "fp32", "--tree-sizes", ",".join(map(str, SIZES))
    return host, export(folder / "target", folder / "draft", folder / "device", *sizes, *precise, *more)
