"""FP8 (e4m3) weights with scales: `weight_scale_inv` by blocks of 128 x 128 (DeepSeek, transformers' fp8), or `weight_scale` for a whole
matrix or a row (vLLM's fp8 and AutoFP8, fbgemm_fp8, ModelOpt). In all of them the weight is value * scale, whatever the name says.

Scales of activations are for kernels that round these too; our graphs do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_dtypes import float8_e4m3fn

from ...errors import CheckpointError, UnsupportedModel
from .plain import PlainMatrix
from .stored import Tensors

SCALES = ("weight_scale_inv", "weight_scale")
DEFAULT_BLOCKS = (128, 128)  # of weight_block_size in transformers; null stands for one scale a matrix
IGNORED = ("input_scale", "input_scale_ub", "activation_scale", "output_scale")


def check(config: Mapping[str, Any], source: str) -> None:
    """Raises UnsupportedModel for ModelOpt's other algorithms, and for eight bits of another kind."""
    algorithm = config.get("quant_algo", "FP8")
    if algorithm != "FP8" or config.get("fmt", "e4m3") != "e4m3" or config.get("expert_dtype", "fp8") != "fp8":
        kind = algorithm if algorithm != "FP8" else config.get("fmt", config.get("expert_dtype"))
        raise UnsupportedModel(f"{source} names weights of the kind {kind!r}, of which e4m3 is read — export from another checkpoint")


def find(files: Tensors, config: Mapping[str, Any]) -> dict[str, PlainMatrix]:
    """Usual name -> matrix, for every weight in float8. Raises CheckpointError for one without scales."""
    names, found = set(files.names()), {}
    blocks = config.get("weight_block_size", DEFAULT_BLOCKS)
    for name in sorted(names):
        stem = name.removesuffix("weight")
        scales = [stem + part for part in SCALES if stem + part in names]
        if not name.endswith(".weight") or files.stored_type(name) != float8_e4m3fn:
            continue
        if not scales:
            raise CheckpointError(f"{files.path} has {name} in float8 without its scale — it is incomplete, download it again")
        ignored = [stem + part for part in IGNORED if stem + part in names]
        found[name] = PlainMatrix(files, name, scales[0], None, (name, scales[0], *ignored), blocks)
    return found
