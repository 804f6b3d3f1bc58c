"""A tiny Hugging Face directory whose files a test changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support.tiny import tiny_model

WEIGHTS = "model.safetensors"


class HfDirectory:
    """``model``: as it was first; ``tensors``: of its file of weights."""

    def __init__(self, path: Path, name: str = "llama", **overrides: Any) -> None:
        self.path, self.model = path, tiny_model(name, **{"num_hidden_layers": 2, **overrides})
        self.model.save_pretrained(path)
        self.tensors: dict[str, np.ndarray] = load_file(path / WEIGHTS)

    def write(self, tensors: Mapping[str, np.ndarray], file: str = WEIGHTS) -> None:
        save_file(dict(tensors), self.path / file, metadata={"format": "pt"})

    def add(self, **tensors: np.ndarray) -> None:
        """More tensors in the file of weights; "__" stands for a dot."""
        self.tensors |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        self.write(self.tensors)

    def configure(self, **changes: Any) -> None:
        """Changes of config.json; None removes a key."""
        file = self.path / "config.json"
        config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
