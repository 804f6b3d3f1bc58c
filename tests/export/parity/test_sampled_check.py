"""The check of a large model, which runs only some layers: it passes what is right, and finds what is planted elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.calibration import InputMoments
from export.checkpoints.arch import Arch
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.errors import ParityError
from export.graphs.int8.rounding import TWO_DIGITS, Rounding
from export.graphs.precision import PRECISIONS, TENSORRT_PRECISIONS, Precision
from export.graphs.target import TargetWriter
from export.graphs.weights import WeightFile
from export.parity import target
from export.parity.stored import check_stored
from export.parity.target import check_target, sampled_layers
from export.parity.wiring import check_wiring
from export.rotation.target import RotatedTarget
from tests.support.tiny import tiny_model

LAYER, OTHER = "model.layers.2.", "model.layers.4."  # the check runs layers 0, 3 and 5
Tensors = dict[str, np.ndarray]


class Planted:
    """A checkpoint with faults: the exporter reads it instead of the true one."""

    def __init__(self, true: HuggingFaceCheckpoint, faults: Tensors) -> None:
        self.path, self.arch, self._true, self._faults = true.path, true.arch, true, faults

    def shape(self, name: str) -> tuple[int, ...]:
        return self._true.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._faults[name][start:stop] if name in self._faults else self._true.read(name, start, stop)

    def fingerprint(self) -> list[list[Any]]:
        return self._true.fingerprint()


def swapped(read: Callable[[str], np.ndarray], one: str, other: str) -> Tensors:
    return {one: read(other), other: read(one)}


FAULTS: dict[str, Callable[[Callable[[str], np.ndarray]], Tensors]] = {
    "queries and keys": lambda read: swapped(read, f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.k_proj.weight"),
    "gate and up": lambda read: swapped(read, f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"),
    "two layers": lambda read: swapped(read, f"{LAYER}mlp.down_proj.weight", f"{OTHER}mlp.down_proj.weight"),
    "one layer twice": lambda read: {f"{LAYER}self_attn.v_proj.weight": read(f"{OTHER}self_attn.v_proj.weight")},
    "rows shifted": lambda read: {f"{LAYER}mlp.up_proj.weight": np.roll(read(f"{LAYER}mlp.up_proj.weight"), 1, 0)},
    "inputs shifted": lambda read: {f"{LAYER}mlp.up_proj.weight": np.roll(read(f"{LAYER}mlp.up_proj.weight"), 1, 1)},
    "turned": lambda read: {f"{LAYER}self_attn.o_proj.weight": read(f"{LAYER}self_attn.o_proj.weight").T.copy()},
    "another norm": lambda read: {f"{LAYER}input_layernorm.weight": read(f"{LAYER}post_attention_layernorm.weight")},
    "last norm": lambda read: {"model.norm.weight": read(f"{LAYER}input_layernorm.weight")},
    "embedding shifted": lambda read: {"model.embed_tokens.weight": np.roll(read("model.embed_tokens.weight"), 1, 0)},
    "head shifted": lambda read: {"lm_head.weight": np.roll(read("lm_head.weight"), -1, 0)},
    "head of the embedding": lambda read: {"lm_head.weight": read("model.embed_tokens.weight")},
    "half the size": lambda read: {f"{LAYER}mlp.down_proj.weight": 0.5 * read(f"{LAYER}mlp.down_proj.weight")},
}


def written(directory: Path, checkpoint: Any, precision: Precision, static: bool = False, rounding: Rounding = TWO_DIGITS) -> Path:
    """target.onnx and target.data."""
    with WeightFile(directory / "target.data") as weights:
        writer = TargetWriter(checkpoint.arch, checkpoint, precision, 128, weights, static=static, rounding=rounding)
        for _ in writer.build():
            pass
    onnx.save(writer.model(), directory / "target.onnx")
    return directory / "target.onnx"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceCheckpoint:
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_model("llama", tied=False, num_key_value_heads=4, intermediate_size=160).save_pretrained(directory)
    return HuggingFaceCheckpoint(directory)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False), ("llama-bias", False)], ids=str
)
def test_what_is_right_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tied: bool, precision: str) -> None:
    monkeypatch.setattr(target, "FULL_CHECK", 0)
    tiny_model(name, tied=tied).save_pretrained(tmp_path)
    opened = HuggingFaceCheckpoint(tmp_path)
    check = check_target(written(tmp_path, opened, PRECISIONS[precision]), opened, PRECISIONS[precision])
    assert (check.layers, check.rows) == (3, len(target.TREE_PARENTS))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", TENSORRT_PRECISIONS)
def test_what_tensorrt_reads_passes(tmp_path: Path, precision: str, tied: bool) -> None:
    tiny_model("qwen2", tied=tied).save_pretrained(tmp_path)
    opened = HuggingFaceCheckpoint(tmp_path)
    check_stored(written(tmp_path, opened, TENSORRT_PRECISIONS[precision], static=True), opened)


def calibrated(checkpoint: Any) -> Rounding:
    texts = np.random.default_rng(0).integers(0, checkpoint.arch.vocab, (4, 50)).tolist()
    return Rounding(rotated=True, unsigned=True, calibration=InputMoments(checkpoint, texts))


def test_error_feedback_passes(tmp_path: Path, checkpoint: HuggingFaceCheckpoint) -> None:
    opened = RotatedTarget(checkpoint)
    file = written(tmp_path, opened, PRECISIONS["int8"], rounding=calibrated(opened))
    check_stored(file, opened, feedback=True)
    with pytest.raises(ParityError, match="differ from the checkpoint's"):
        check_stored(file, opened)  # weights were moved by more than half a step
    assert check_target(file, opened, PRECISIONS["int8"], feedback=True).mean_kl < 0.1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_beside_error_feedback(tmp_path: Path, checkpoint: HuggingFaceCheckpoint, fault: str) -> None:
    planted = Planted(checkpoint, FAULTS[fault](checkpoint.read))
    file = written(tmp_path, planted, PRECISIONS["int8"], rounding=calibrated(planted))
    with pytest.raises(ParityError, match="differ from the checkpoint's"):
        check_stored(file, checkpoint, feedback=True)


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tmp_path: Path, checkpoint: HuggingFaceCheckpoint, fault: str, precision: str) -> None:
    faults = FAULTS[fault](checkpoint.read)
    file = written(tmp_path, Planted(checkpoint, faults), PRECISIONS[precision])
    with pytest.raises(ParityError, match="differ from the checkpoint's") as error:
        check_stored(file, checkpoint)
    assert any(name in str(error.value) for name in faults)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("tensor", ["layers.2.down.scale", "layers.2.qkv.scale", "head.scale", "model.embed_tokens.weight.scale"])
def test_scales_of_other_blocks_are_found(tmp_path: Path, checkpoint: HuggingFaceCheckpoint, tensor: str, precision: str) -> None:
    file = written(tmp_path, checkpoint, PRECISIONS[precision])
    (stored,) = (each for each in onnx.load(file, load_external_data=False).graph.initializer if each.name == tensor)
    place = {entry.key: entry.value for entry in stored.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(stored.data_type)
    data = np.memmap(tmp_path / "target.data", np.uint8, "r+", int(place["offset"]), int(place["length"])).view(kind)
    data[:] = np.roll(data, 1)
    with pytest.raises(ParityError):
        check_stored(file, checkpoint)


def other_weights(node: onnx.NodeProto) -> None:
    node.input[1] = node.input[1].replace("layers.2.", "layers.4.")


def no_bias(node: onnx.NodeProto) -> None:
    del node.input[-1]


def other_epsilon(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "epsilon":
            attribute.f = 1e-3


@pytest.mark.parametrize(
    ("kind", "change"), [("MatMulNBits", other_weights), ("RMSNormalization", other_epsilon), ("Add", no_bias), ("Concat", no_bias)]
)
def test_a_layer_that_is_wired_otherwise_is_found(
    tmp_path: Path, checkpoint: HuggingFaceCheckpoint, kind: str, change: Callable[[onnx.NodeProto], None]
) -> None:
    model = onnx.load(written(tmp_path, checkpoint, PRECISIONS["int4"]), load_external_data=False)
    check_wiring(model, checkpoint.arch.layers)
    nodes = list(model.graph.node)
    (begin,) = (index for index, node in enumerate(nodes) if "stream.2" in node.output)
    change(next(node for node in nodes[begin + 1 :] if node.op_type == kind))
    with pytest.raises(ParityError, match="layer 2"):
        check_wiring(model, checkpoint.arch.layers)


def test_which_layers_are_run(checkpoint: HuggingFaceCheckpoint) -> None:
    arch: Arch = checkpoint.arch
    assert list(sampled_layers(arch)) == list(range(6))  # small: all
    large = Arch(**{**vars(arch), "layers": 32, "hidden": 4096, "intermediate": 14336})
    assert list(sampled_layers(large)) == [0, 16, 31]
