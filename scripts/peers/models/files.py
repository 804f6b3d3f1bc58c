"""The demo model in every engine's format, made once from the same weights and kept below the work directory."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from export.checkpoints.fetch import packaged_gguf
from export.checkpoints.models import MODELS, PackagedGguf
from scripts.peers.environments import PeerUnavailable, last_line, python_of
from scripts.peers.models.gguf_files import write_gguf
from scripts.peers.models.hf_copy import write_hf_directory

MODEL = "smollm2-135m"
TARGET_LAYERS = 30
CONVERTER = Path(__file__).resolve().parent / "convert_openvino.py"
OPENVINO_FORMATS = ("openvino-f32", "openvino-int8", "openvino-int4", "openvino-eagle3")
FORMATS = ("hf", "gguf-F32", "gguf-Q8_0", "gguf-Q4_1", "genai-fp32", "genai-int4", *OPENVINO_FORMATS)


def model_file(work: Path, model_format: str) -> Path:
    """The model in ``model_format`` (FORMATS): a directory or, for gguf, a file. Raises PeerUnavailable if the engine's converter fails."""
    kind, _, precision = model_format.partition("-")
    if kind == "hf":
        return write_hf_directory(work / "hf")
    if kind == "gguf":
        return _source() if precision == "Q4_1" else write_gguf(_source(), work / f"{precision}.gguf", precision)
    if kind == "genai":
        options = ["-i", str(work / "hf"), "-p", precision, "-e", "cpu", "-c", str(work / "genai-cache"), "-o"]
        command = ["-m", "onnxruntime_genai.models.builder", *options]
        return _made(work / model_format, lambda out: _convert(work, "onnxruntime-genai", [*command, str(out)]))
    source = draft_directory(work / "hf-draft", work) if precision == "eagle3" else write_hf_directory(work / "hf")
    return _made(work / model_format, lambda out: _convert(work, "openvino", [str(CONVERTER), str(source), str(out), precision]))


def draft_directory(directory: Path, work: Path) -> Path:
    """The shipped draft in float32 with the target's embedding, under AngelSlim's tensor names, which OpenVINO's exporter expects."""
    from ml_dtypes import bfloat16
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    draft = MODELS[MODEL].draft
    if not isinstance(draft, Path):
        raise PeerUnavailable(f"the draft of {MODEL} is not in this checkout")
    if (directory / "config.json").is_file():
        return directory
    with safe_open(write_hf_directory(work / "hf") / "model.safetensors", "numpy") as target:
        embedding = target.get_tensor("model.embed_tokens.weight")
    weights = {f"model.{name}": value for name, value in load_file(draft / "model.safetensors").items()}
    weights = {name: value.astype("float32") if value.dtype == bfloat16 else value for name, value in weights.items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file({**weights, "model.embed_tokens.weight": embedding}, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((draft / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32", "target_layers": TARGET_LAYERS}))
    return directory


def _source() -> Path:
    source = MODELS[MODEL].target
    assert isinstance(source, PackagedGguf)
    return packaged_gguf(source)


def _made(out: Path, make: Callable[[Path], None]) -> Path:
    """``out``, written under another name first, so that an interrupted run leaves no incomplete model."""
    if not out.is_dir():
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(out)
    return out


def _convert(work: Path, environment: str, arguments: Sequence[str]) -> None:
    write_hf_directory(work / "hf")
    done = subprocess.run([python_of(work, environment), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerUnavailable(f"cannot convert the model for {environment}: {last_line(done.stderr)}")
