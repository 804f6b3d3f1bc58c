"""What tests of checkpoints share: comparing tensors and logits, expecting an error, writing pickled weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoints.safetensors import Checkpoint
from export.errors import CheckpointError
from export.parity.reference import reference_logits
from runtime.decoding.tree import Tree
from tests.support.tiny import weights_of

TOKENS = [3, 141, 59, 26, 53, 58, 97]
LAYERS = 2


@contextmanager
def refused(message: str, kind: type[Exception] = CheckpointError) -> Iterator[None]:
    """Expects an error of one line: what happened — what to do. ``message``: a regular expression."""
    with pytest.raises(kind, match=message) as caught:
        yield
    assert len(str(caught.value).splitlines()) == 1
    assert " — " in str(caught.value)


def logits_of(checkpoint: Checkpoint) -> np.ndarray:
    chain = Tree.chain(TOKENS)
    return reference_logits(checkpoint, chain.tokens, chain.depth, chain.mask, range(checkpoint.arch.layers))


def expect_tensors(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    """Every tensor, read whole and in slices, is float32 and equals the expected one."""
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tensor.shape
        whole = checkpoint.read(name)
        assert whole.dtype == np.float32
        assert (whole == tensor).all(), name
        middle = len(tensor) // 3
        assert (checkpoint.read(name, middle, middle + 5) == tensor[middle : middle + 5]).all(), name
        assert (checkpoint.read(name, middle) == tensor[middle:]).all(), name


def as_pickles(directory: Path, model: Any, parts: int, dtype: torch.dtype = torch.float32) -> None:
    """Writes the directory of an older model: one pytorch_model.bin, or several and an index."""
    directory.mkdir(exist_ok=True)
    model.config.save_pretrained(directory)
    tensors = {name: torch.from_numpy(tensor).to(dtype) for name, tensor in weights_of(model).items()}
    names = sorted(tensors)
    if parts == 1:
        torch.save(tensors, directory / "pytorch_model.bin")
        return
    place = {name: f"pytorch_model-{index % parts + 1:05}-of-{parts:05}.bin" for index, name in enumerate(names)}
    for file in set(place.values()):
        torch.save({name: tensors[name] for name in names if place[name] == file}, directory / file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
