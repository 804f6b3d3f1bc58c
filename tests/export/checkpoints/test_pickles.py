"""Pickled weights in the forms that older tools wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoints.fetch import open_checkpoint
from export.errors import CheckpointError, UnsupportedModel
from tests.support.checkpoints import expect_tensors, refused
from tests.support.tiny import tiny_model, weights_of

NAME = "model.layers.0.self_attn.o_proj.weight"
FORMS: Mapping[str, Callable[[dict[str, torch.Tensor], Path], None]] = {
    "before zip archives": lambda tensors, file: torch.save(tensors, file, _use_new_zipfile_serialization=False),
    "parameters": lambda tensors, file: torch.save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, file),
    "parameters in bfloat16": lambda tensors, file: torch.save(
        {name: torch.nn.Parameter(tensor.bfloat16()) for name, tensor in tensors.items()}, file
    ),
    "with gradients": lambda tensors, file: torch.save({name: tensor.half().requires_grad_() for name, tensor in tensors.items()}, file),
    "beside plain values": lambda tensors, file: torch.save({**tensors, "epoch": 3, "loss": 0.5, "tool": "x", "seed": None}, file),
}


def written(directory: Path, save: Callable[[dict[str, torch.Tensor], Path], None]) -> dict[str, torch.Tensor]:
    model = tiny_model(num_hidden_layers=1)
    model.config.save_pretrained(directory)
    tensors = {name: torch.from_numpy(tensor).bfloat16().half().float() for name, tensor in weights_of(model).items()}
    save(tensors, directory / "pytorch_model.bin")
    return tensors


@pytest.mark.parametrize("form", FORMS)
def test_older_forms_are_read(tmp_path: Path, form: str) -> None:
    tensors = written(tmp_path, FORMS[form])
    expect_tensors(open_checkpoint(tmp_path), {name: tensor.numpy() for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (lambda tensor: tensor.to_sparse(), "sparse_coo"),
        (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
    ],
)
def test_tensors_that_are_not_plain_numbers_are_refused_by_name(tmp_path: Path, change: Callable[[Any], Any], form: str) -> None:
    written(tmp_path, lambda tensors, file: torch.save({**tensors, NAME: change(tensors[NAME])}, file))
    with refused(f"pytorch_model.bin stores {NAME} as {form}, which cannot be read — get the model's safetensors", UnsupportedModel):
        open_checkpoint(tmp_path)


def test_tensors_inside_another_table_are_refused(tmp_path: Path) -> None:
    written(tmp_path, lambda tensors, file: torch.save({"state_dict": tensors, "epoch": 3}, file))
    with refused("it is not a table of tensors — ", CheckpointError):
        open_checkpoint(tmp_path)
