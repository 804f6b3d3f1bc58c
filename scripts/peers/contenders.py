"""The contenders: this engine and others, in every precision and with every speculation they have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
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
    its format (files.FORMATS). ``fallback``: options to try if the engine crashes with its defaults. ``checkout``: another directory of
    this project, whose packages it runs."""

    name: str
    engine: str
    precision: str
    plain: str
    environment: str | None = None
    formats: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    fallback: dict[str, Any] = field(default_factory=dict)
    checkout: Path | None = None

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
    if "-batch" in name:
        module += "_batch"
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

BATCH_PEERS = (
    _peer("openvino-fp32-batch", "fp32", "openvino-f32", note="continuous batching, float32 arithmetic and cache", exact=True),
    _peer(
        "openvino-fp32-batch-eagle3", "fp32", "openvino-f32", "openvino-fp32-batch", "openvino-eagle3",
        "our draft, tree of 4 guesses, depth 3, width 2", exact=True, whole_prompt=True, generation=TREE,
    ),
    _peer(
        "openvino-fp32-batch-eagle3-chain", "fp32", "openvino-f32", "openvino-fp32-batch", "openvino-eagle3",
        "our draft, chain of 3", exact=True, generation={"num_assistant_tokens": 3},
    ),
    _peer("openvino-int8-batch", "int8", "openvino-int8", note="continuous batching, its default arithmetic"),
    _peer(
        "openvino-int8-batch-eagle3", "int8", "openvino-int8", "openvino-int8-batch", "openvino-eagle3",
        "our draft, tree of 2 guesses, depth 2, width 2", whole_prompt=True, generation=SMALL_TREE,
    ),
    _peer("llama.cpp-fp32-batch", "fp32", "gguf-F32", note="llama_decode with several sequences, cache in float32", f32=True),
    _peer("llama.cpp-q8_0-batch", "int8", "gguf-Q8_0", note="llama_decode with several sequences"),
    _peer("llama.cpp-q4_1-batch", "int4", "gguf-Q4_1", note="llama_decode with several sequences"),
)  # fmt: skip
"""Engines that answer several requests at once."""


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


def own_batch_contenders(
    engine_dirs: Iterable[Path], olds: Iterable[tuple[Path, Path]], replicas: Sequence[int], lanes: Sequence[int]
) -> list[PeerContender]:
    """For every directory, and every pair of an older checkout with a directory that it exported: all pairs of replicas and lanes (one lane
    for an older checkout), plain and as the Decoder chooses. Raises BenchError, EngineDirError."""
    found = [("resps", None, contender.options["engine_dir"], contender.precision, lanes)
             for contender in own_contenders(engine_dirs) if not contender.speculates]  # fmt: skip
    found += [(checkout.name, checkout, str(directory), _precision(directory), [1]) for checkout, directory in olds]
    contenders = []
    for family, checkout, directory, precision, of_each in found:
        places = [(count, lane) for lane in of_each for count in replicas]
        first = f"{family}-{precision}-{_place(*places[0])}-plain"
        for (count, lane), policy in product(places, ("none", "tuned")):
            name = f"{family}-{precision}-{_place(count, lane)}" + ("-plain" if policy == "none" else "")
            plain = name if policy == "none" else first
            options = {"engine_dir": directory, "policy": policy, "replicas": count, "lanes": lane}
            contenders.append(PeerContender(name, "resps_batch", precision, plain, options=options, checkout=checkout))
    return contenders


def _place(replicas: int, lanes: int) -> str:
    """Part of a contender's name."""
    parts = [f"{replicas}-replica{'s' * (replicas > 1)}"] if replicas > 1 or lanes == 1 else []
    return "-".join([*parts, *([f"{lanes}-lanes"] if lanes > 1 else [])])


def _precision(engine_dir: Path) -> str:
    """Of a directory that an older checkout exported, whose manifest this one may not be able to read. Raises BenchError."""
    try:
        return str(json.loads((engine_dir / "manifest.json").read_text(encoding="utf-8"))["precision"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{engine_dir} has no manifest that names a precision ({error}) — export it with its checkout") from None


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
