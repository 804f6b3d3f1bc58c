"""What resps-export was asked for, and whether it goes together."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import click

from runtime.console import usage_errors

LONGEST_NAME = 200  # bytes; file systems allow about 255, and a scratch directory's name is longer
DEFAULT_PRECISIONS = {"onnxruntime": "fp32", "tensorrt": "fp16"}
LARGEST_TREE = 512


@dataclass(frozen=True)
class Asked:
    """What is to be exported, as it was typed."""

    model: str | None
    weights: str | None
    draft_weights: str | None
    no_draft: bool
    draft_precision: str | None
    policy: Path | None
    out: Path
    name: str | None
    backend: str
    precision: str | None
    requantize: bool
    no_rotation: bool
    rounding: str | None
    max_context: int
    prefill_rows: int
    tree_sizes: str
    lanes: int
    compute_capability: str | None

    @property
    def chosen_precision(self) -> str:
        return self.precision or DEFAULT_PRECISIONS[self.backend]

    @property
    def label(self) -> str:
        """The model's name in the manifest."""
        return self.model or Path(self.weights or "").name.removesuffix(".gguf") or "model"

    @property
    def folder(self) -> str:
        """Of the engine directory."""
        trt = ["trt"] if self.backend == "tensorrt" else []
        special = [self.chosen_precision] if self.chosen_precision != DEFAULT_PRECISIONS[self.backend] else []
        return self.name or "-".join([self.label, *trt, *special])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of trees, ascending. Raises UsageError."""
        parts = [part.strip() for part in self.tree_sizes.split(",")]
        sizes = [int(part) for part in parts if part.isdecimal() and len(part) < 6]
        if len(sizes) != len(parts) or len(set(sizes)) != len(sizes) or not all(1 <= size <= LARGEST_TREE for size in sizes):
            raise click.UsageError(f"--tree-sizes are different whole numbers from 1 to {LARGEST_TREE}, not {self.tree_sizes!r}")
        return tuple(sorted(sizes))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """GPUs that were asked for. Raises UsageError."""
        from .tensorrt.gpu import parse_capabilities

        with usage_errors():
            return parse_capabilities(self.compute_capability) if self.compute_capability is not None else ()


def checked(asked: Asked) -> Asked:
    """Raises UsageError for options that do not go together."""
    if asked.model is None and asked.weights is None:
        raise click.UsageError("give --model NAME or --weights DIR, FILE.gguf or a hub id")
    if asked.no_draft and (asked.draft_weights or asked.draft_precision or asked.policy):
        raise click.UsageError("--no-draft goes with none of --draft-weights, --draft-precision and --policy")
    if (asked.no_rotation or asked.rounding) and asked.chosen_precision != "int8":
        raise click.UsageError("--no-rotation and --rounding need --precision int8")
    if asked.backend != "tensorrt" and "fp8" in (asked.precision, asked.draft_precision):
        raise click.UsageError("fp8 needs --backend tensorrt; for the CPU there is int8")
    for name, given in (("--compute-capability", asked.compute_capability is not None), ("--lanes", asked.lanes > 1)):
        if given and asked.backend != "tensorrt":
            raise click.UsageError(f"{name} needs --backend tensorrt")
    if Path(asked.folder).name != asked.folder or asked.folder.startswith("."):
        raise click.UsageError(f"--name must be a plain directory name, not {asked.folder!r}")
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in asked.folder):
        raise click.UsageError(f"--name must be without line breaks and control characters, not {asked.folder!r}")
    if len(os.fsencode(asked.folder)) > LONGEST_NAME:
        raise click.UsageError(f"--name must have at most {LONGEST_NAME} bytes, not {len(os.fsencode(asked.folder))}")
    _ = asked.sizes, asked.capabilities
    return asked
