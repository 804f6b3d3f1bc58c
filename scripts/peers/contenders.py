"""The contenders: this engine and others, in every precision and with every speculation they have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import BenchError
from runtime.manifest.load import find_engine_dir, load_manifest
from scripts.peers.models.files import MODEL

PRECISIONS = ("fp32", "bf16", "int8", "int4")


@dataclass(frozen=True)
class PeerContender:
    """``precision``: of the weights; bf16 is bfloat16 arithmetic on float32 weights. ``plain``: the contender whose text it must repeat;
    its own name if it does not speculate. ``environment``: None for this project's own. ``formats``: options that name a model file, with
    its format (files.FORMATS). ``fallback``: options to try if the engine crashes with its defaults."""

    name: str
    engine: str
    precision: str
    plain: str
    environment: str | None = None
    formats: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    fallback: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.environment is None

    @property
    def speculates(self) -> bool:
        return self.plain != self.name


def _peer(name: str, precision: str, model_format: str, plain: str = "", draft: str = "", note: str = "", **options: Any) -> PeerContender:
    family = name.split("-")[0]
    module, environment = {
        "transformers": ("transformers", "transformers"),
        "genai": ("genai", "onnxruntime-genai"),
        "llama.cpp": ("llama_cpp", "llama-cpp-python"),
        "openvino": ("openvino", "openvino"),
    }[family]
    formats = {"model": model_format, **({"draft": draft} if draft else {})}
    fallback = {"repack": False} if model_format in ("gguf-Q8_0", "gguf-Q4_1") else {}
    return PeerContender(name, module, precision, plain or name, environment, formats, options, note, fallback)


TREE = {"num_assistant_tokens": 4, "tree_depth": 3, "branching_factor": 2}
SMALL_TREE = {"num_assistant_tokens": 2, "tree_depth": 2, "branching_factor": 2}
PEERS = (
    _peer("transformers-fp32", "fp32", "hf", note="generate, sdpa"),
    _peer("transformers-fp32-lookup", "fp32", "hf", "transformers-fp32", note="prompt lookup of 5", lookup=5),
    _peer("genai-fp32", "fp32", "genai-fp32"),
    _peer("llama.cpp-fp32", "fp32", "gguf-F32", note="cache in float32", f32=True),
    _peer("llama.cpp-fp32-lookup", "fp32", "gguf-F32", "llama.cpp-fp32", note="prompt lookup of 2", f32=True, lookup=2),
    _peer("openvino-fp32", "fp32", "openvino-f32", note="float32 arithmetic and cache", exact=True),
    _peer("openvino-fp32-lookup", "fp32", "openvino-f32", "openvino-fp32", note="prompt lookup of 3", exact=True, lookup=3),
    _peer(
        "openvino-fp32-eagle3", "fp32", "openvino-f32", "openvino-fp32", "openvino-eagle3",
        "our draft, tree of 4 guesses, depth 3, width 2", exact=True, whole_prompt=True, generation=TREE,
    ),
    _peer(
        "openvino-fp32-eagle3-chain", "fp32", "openvino-f32", "openvino-fp32", "openvino-eagle3",
        "our draft, chain of 3", exact=True, generation={"num_assistant_tokens": 3},
    ),
    _peer("openvino-bf16", "bf16", "openvino-f32", note="its defaults on float32 weights"),
    _peer(
        "openvino-bf16-eagle3", "bf16", "openvino-f32", "openvino-bf16", "openvino-eagle3",
        "our draft, tree of 4 guesses, depth 3, width 2", whole_prompt=True, generation=TREE,
    ),
    _peer("llama.cpp-q8_0", "int8", "gguf-Q8_0"),
    _peer("openvino-int8", "int8", "openvino-int8", note="its default arithmetic"),
    _peer(
        "openvino-int8-eagle3", "int8", "openvino-int8", "openvino-int8", "openvino-eagle3",
        "our draft, tree of 2 guesses, depth 2, width 2", whole_prompt=True, generation=SMALL_TREE,
    ),
    _peer("genai-int4", "int4", "genai-int4"),
    _peer("llama.cpp-q4_1", "int4", "gguf-Q4_1", note="the weights that all others start from"),
    _peer("openvino-int4", "int4", "openvino-int4", note="its default arithmetic"),
)  # fmt: skip


def own_contenders(engine_dirs: Iterable[Path]) -> list[PeerContender]:
    """For every directory: plain decoding, the default tree and, if tuned, the tuned policy. Raises BenchError, EngineDirError."""
    contenders: list[PeerContender] = []
    for engine_dir in engine_dirs:
        directory = find_engine_dir(engine_dir)
        manifest = load_manifest(directory, verify=False)
        if manifest.model != MODEL or manifest.backend != "onnxruntime":
            raise BenchError(f"{engine_dir} holds {manifest.model} for {manifest.backend} — the peers run {MODEL} on the CPU, export that")
        plain = f"resps-{manifest.precision}"
        if plain in (contender.name for contender in contenders):
            raise BenchError(f"two --engine-dir hold {manifest.precision} — give one for each precision")
        policies = {"none": "plain decoding", "default": "EAGLE-3, the default tree", "tuned": "EAGLE-3, as tuned here"}
        for policy, note in policies.items():
            if policy != "tuned" or manifest.tuning is not None:
                name, options = plain if policy == "none" else f"{plain}-{policy}", {"engine_dir": str(directory), "policy": policy}
                contenders.append(PeerContender(name, "resps", manifest.precision, plain, options=options, note=note))
    return contenders


def chosen(contenders: Sequence[PeerContender], names: str | None) -> list[PeerContender]:
    """Those of ``names`` (comma-separated; NAME* is a prefix), or all. Raises BenchError for an unknown name."""
    if names is None:
        return list(contenders)
    selected: list[PeerContender] = []
    for name in names.split(","):
        matching = [
            contender for contender in contenders if contender.name == name or (name.endswith("*") and contender.name.startswith(name[:-1]))
        ]
        if not matching:
            raise BenchError(f"there is no contender {name!r} — choose from {', '.join(contender.name for contender in contenders)}")
        selected += [contender for contender in matching if contender not in selected]
    return selected
