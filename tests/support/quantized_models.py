"""Models whose matrices are stored quantized: tensors as the published tools write them, and the model over the weights they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support import packers
from tests.support.packers import Packed
from tests.support.tiny import weights_of, write_tokenizer

Pack = Callable[[str, np.ndarray], Packed | None]
"""Name of a matrix and its weight -> its tensors and what they stand for; None keeps it in floating point."""


def shuffled(inputs: int, size: int) -> np.ndarray:
    """g_idx of desc_act: groups of inputs that lie anywhere. The same for all matrices of as many inputs, as from the same activations."""
    return np.argsort(np.random.default_rng(inputs).permutation(inputs)) // size


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def _mixed(name: str, weight: np.ndarray, size: int) -> Packed | None:
    """Queries in four bits, keys in eight, values in floating point, the rest in four bits."""
    if "v_proj" in name:
        return None
    return packers.pack_quantized(weight, 8 if "k_proj" in name else 4, packers.groups_of(weight.shape[1], size), zero_points=True)


def _gptq(weight: np.ndarray, size: int, **how: Any) -> Packed:
    return packers.gptq(weight, 4, packers.groups_of(weight.shape[1], size), **how)


def _compressed(kind: str, bits: int = 8, **extra: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", **extra}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}


def _float8(weight: np.ndarray, rows: int, inputs: int, scale: str) -> Packed:
    values, scales, dense = packers.float8(weight, rows, inputs)
    return {"weight": values, scale: scales}, dense


_GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False}
_AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}


def schemes(size: int) -> Mapping[str, tuple[dict[str, Any], Pack]]:
    """Name -> quantization_config and how a matrix is packed, with groups of ``size`` inputs."""
    return {
        "gptq": ({**_GPTQ, "group_size": size}, lambda _, weight: _gptq(weight, size)),
        "gptq v2": (
            {**_GPTQ, "group_size": size // 2, "checkpoint_format": "gptq_v2"},
            lambda _, weight: _gptq(weight, size // 2, v2=True),
        ),
        "gptq symmetric": ({**_GPTQ, "group_size": size, "sym": True}, lambda _, weight: _gptq(weight, size, zero_points=False)),
        "gptq whole rows": ({**_GPTQ, "group_size": -1}, lambda _, weight: _gptq(weight, -1)),
        "gptq desc_act": (
            {**_GPTQ, "group_size": size, "desc_act": True},
            lambda _, weight: packers.gptq(weight, 4, shuffled(weight.shape[1], size)),
        ),
        "awq": ({**_AWQ, "group_size": size}, lambda _, weight: packers.awq(weight, size)),
        "int4 groups": (
            _compressed("pack-quantized", 4, group_size=size),
            lambda _, weight: packers.pack_quantized(weight, 4, packers.groups_of(weight.shape[1], size), zero_points=False),
        ),
        "int8 rows": (_compressed("int-quantized"), lambda _, weight: packers.int_quantized(weight)),
        "int8 rows with zero points": (_compressed("int-quantized"), lambda _, weight: packers.int_quantized(weight, zero_points=True)),
        "int8 groups": (_compressed("int-quantized", group_size=size), lambda _, weight: packers.int_quantized(weight, size)),
        "mixed": (_compressed("pack-quantized", 4, group_size=size), lambda name, weight: _mixed(name, weight, size)),
        "fp8 rows": ({"quant_method": "fp8"}, lambda _, weight: _float8(weight, 1, weight.shape[1], "weight_scale")),
        "fp8 blocks": (
            {"quant_method": "fp8", "weight_block_size": [size, size]},
            lambda _, weight: _float8(weight, size, size, "weight_scale_inv"),
        ),
    }


SCHEMES = tuple(schemes(32))


def quantize(model: Any, pack: Pack, chosen: Callable[[str], bool] = is_linear) -> dict[str, np.ndarray]:
    """The checkpoint's tensors with the ``chosen`` matrices packed. ``model`` gets the weights that they stand for."""
    tensors, parameters = dict(weights_of(model)), dict(model.named_parameters())
    for name in filter(chosen, list(tensors)):
        packed = pack(name, tensors[name])
        if packed is None:
            continue
        del tensors[name]
        stem = name.removesuffix("weight")
        tensors |= {stem + part: array for part, array in packed[0].items()}
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(packed[1]))
    return tensors


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """safetensors' own numpy writer does not know float8."""
    from safetensors.torch import save_file

    def as_torch(array: np.ndarray) -> torch.Tensor:
        array = np.ascontiguousarray(array)
        if array.dtype.name == "float8_e4m3fn":
            return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    save_file({name: as_torch(array) for name, array in tensors.items()}, file)


def write_quantized(directory: Path, model: Any, scheme: str, chosen: Callable[[str], bool] = is_linear, group: int = 32) -> None:
    """Writes ``model`` as a quantized Hugging Face directory; the model itself then has the weights that are stored."""
    config, pack = schemes(group)[scheme]
    tensors = quantize(model, pack, chosen)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors)
    model.config.save_pretrained(directory)
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    write_tokenizer(directory)
