"""Faults of drafts as users make them: changes of a checkpoint's config.json and tensors, by the words in which the doctor names them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy then knows bfloat16
import numpy as np
from safetensors.numpy import load_file, save_file

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]
Change = Callable[[Config, Tensors], None]
LAYERS = "the draft should read layers 2, 15, 27 of the target, and reads 3, 16, 28"
SHIFTED = "(d2t) is wrong: it should be one lower"
QKV = [f"midlayer.self_attn.{part}_proj.weight" for part in "qkv"]


def _swap_columns(config: Config, tensors: Tensors) -> None:
    for name in QKV:
        tensors[name] = np.concatenate(np.split(tensors[name], 2, axis=1)[::-1], axis=1)


def _reverse_fc(config: Config, tensors: Tensors) -> None:
    tensors["fc.weight"] = np.concatenate(np.split(tensors["fc.weight"], 3, axis=1)[::-1], axis=1)


def _add_norms(config: Config, tensors: Tensors) -> None:
    config.pop("fc_norm", None)  # norms that the config denies are refused
    tensors |= {f"fc_norm.{index}.weight": np.ones(config["hidden_size"], np.float32) for index in range(3)}


def _stale_embedding(config: Config, tensors: Tensors) -> None:
    config["embed_requires_grad"] = True
    tensors["embed_tokens.weight"] = np.random.default_rng(0).normal(0, 0.02, (config["vocab_size"], config["hidden_size"]))


def _other_head(config: Config, tensors: Tensors) -> None:
    tensors["lm_head.weight"] = np.roll(tensors["lm_head.weight"], 1000, axis=0)


def _map(config: Config, tensors: Tensors, ids: np.ndarray) -> None:
    tensors["d2t"], tensors["t2d"] = ids - np.arange(len(ids)), np.isin(np.arange(config["vocab_size"]), ids)


def _shift_map(config: Config, tensors: Tensors) -> None:
    _map(config, tensors, tensors["d2t"] + np.arange(len(tensors["d2t"])) + 1)


def _foreign_map(config: Config, tensors: Tensors) -> None:
    """Of a draft that has the same tokens, in another order."""
    ids = tensors["d2t"] + np.arange(len(tensors["d2t"]))
    _map(config, tensors, np.random.default_rng(0).permutation(ids))


def _foreign_target(config: Config, tensors: Tensors) -> None:
    """What another model calls a channel is not what this one does."""
    tensors["fc.weight"] = np.random.default_rng(0).permutation(tensors["fc.weight"], axis=1)


FAULTS: Mapping[str, Change] = {
    LAYERS: lambda config, tensors: config.update(eagle_aux_hidden_state_layer_ids=[3, 16, 28]),
    "the residual of the draft's layer should be left as it is": lambda config, tensors: config.update(norm_before_residual=True),
    "the feature fed back should be left as it is": lambda config, tensors: config.update(norm_output=True),
    "the features should not be normed before fc": _add_norms,
    "the draft's RoPE should have theta": lambda config, tensors: config.update(rope_theta=10.0),
    "the target's is better": _stale_embedding,
    "(d2t) do not fit each other": _other_head,
    "fc reads the captured layers in the opposite order": _reverse_fc,
    "q, k and v read the feature before the embedding": _swap_columns,
    SHIFTED: _shift_map,
    "lm_head and its vocabulary map (d2t) do not fit": _foreign_map,
    "the draft was trained for another target, or not enough": _foreign_target,
}
"""What the finding says -> what makes it true."""


def plant(draft: Path, out: Path, fault: Change) -> Path:
    """A copy of ``draft`` with the fault."""
    shutil.copytree(draft, out, ignore=shutil.ignore_patterns("tuning"))
    config = json.loads((out / "config.json").read_text())
    tensors = {
        name: each if each.dtype.kind in "ib" else each.astype(np.float32) for name, each in load_file(out / "model.safetensors").items()
    }
    fault(config, tensors)
    kept = {name: np.ascontiguousarray(each, np.float32 if each.dtype.kind == "f" else None) for name, each in tensors.items()}
    save_file(kept, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config))
    return out


def changed(file: Path, **values: Any) -> None:
    """Sets entries of a file in JSON."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
