"""The schema of manifest.json, the contract between export and runtime. The runtime takes everything about a directory from it.

The dataclasses mirror the file key for key. The exporter writes the manifest last, so a directory that has one is complete and checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .graphs import File, Graph
from .tuning import Tuning

SCHEMA = 7
BACKENDS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class TargetShape:
    """Sizes of the target. ``captured_layers``: the layers whose input (the residual stream) is in ``features``."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    captured_layers: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """``context``: the maximum number of tokens in prompt and answer. ``capacity``: cache slots, context plus one pass. ``tree_nodes``: of
    the largest tree. ``prefill_rows``: prompt tokens per pass. ``span_step``: spans of the cache are multiples of this many slots."""

    context: int
    capacity: int
    tree_nodes: int
    prefill_rows: int
    span_step: int


@dataclass(frozen=True)
class Tokens:
    """``tokenizer``: file name. ``chat_templates``: name -> file name; "default" is the one for chats, "tool_use" the one for chats with
    tools. ``stop``: token ids that end an answer. ``bos``: the id of the first token, if any. ``special``: the special tokens' texts as
    templates know them, such as bos_token. ``unusable``: templates that cannot be compiled or rendered, name -> reason. ``chat_bos``:
    whether chats begin with ``bos`` even if their template omits it, as llama.cpp has it for a GGUF. ``split_special``: whether special
    tokens in a text are encoded as ordinary text."""

    tokenizer: str
    chat_templates: Mapping[str, str]
    stop: tuple[int, ...]
    bos: int | None
    special: Mapping[str, str] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    chat_bos: bool = False
    split_special: bool = False

    @property
    def chats(self) -> bool:
        """Whether chat messages can be rendered."""
        return "default" in self.chat_templates


@dataclass(frozen=True)
class Check:
    """Parity of an exported graph with a reference computation on the unquantized weights, over ``rows`` rows of trees. ``mean_kl``: in
    nats. ``same_argmax``: the fraction of rows with the same argmax. ``layers``: how many layers both computed; None is all."""

    rows: int
    max_abs_logit_diff: float
    mean_kl: float
    same_argmax: float
    layers: int | None = None


P_EAGLE, DFLASH = "p-eagle", "dflash"


@dataclass(frozen=True)
class OnePass:
    """How a draft guesses several tokens in one pass. ``kind``: P_EAGLE (arXiv 2602.01469) or DFLASH (arXiv 2602.06036). ``rows``: of a
    block of guesses. The first has the token after the committed ones, all others have ``mask_token``. The last Draft.max_depth of them
    guess, one level of the tree each."""

    kind: str
    rows: int
    mask_token: int


@dataclass(frozen=True)
class Draft:
    """The draft model. ``weights_sha256``: hash of its checkpoint's weight files, by which a tuning knows its draft. ``vocab``: size of
    its own vocabulary. ``tokens_sha256``: hash of the target ids of that vocabulary. ``trained_length``: how far back it was trained to
    see. ``capacity``: cache slots, the target's context plus the largest tree. ``check``: its parity with the reference. ``one_pass``: None
    for EAGLE-3, which has a pass for each level."""

    name: str
    weights_sha256: str
    precision: str
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    tokens_sha256: str
    trained_length: int
    capacity: int
    max_depth: int
    max_width: int
    check: Check
    one_pass: OnePass | None = None


@dataclass(frozen=True)
class TensorRT:
    """What the plans were built with and for. ``flavour``: the Python module, tensorrt or tensorrt_rtx. ``compute_capabilities``: of the
    GPUs they run on, such as "8.9". ``gpu``: the name of the GPU they were built on, if any. ``lanes``: most lanes of a pass of the graphs
    with lanes; 1 if there are none."""

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    lanes: int = 1


@dataclass(frozen=True)
class Source:
    """The exported checkpoint and the options. The directory is up to date if both are unchanged. ``files``: (name, bytes, mtime in ns)."""

    weights: str
    files: tuple[tuple[str, int, int], ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """An engine directory. ``rebuild``: the command that exports it again. ``rotated``: whether the residual stream is (export/rotation),
    and with it the features. ``exact_pairs``: it needs a processor that adds pairs of integer products in 32 bits, as with VNNI."""

    schema: int
    model: str
    precision: str
    backend: str
    shape: TargetShape
    limits: Limits
    tree_sizes: tuple[int, ...]
    tokens: Tokens
    draft: Draft | None
    tensorrt: TensorRT | None
    tuning: Tuning | None
    graphs: Mapping[str, Graph]
    files: Mapping[str, File]
    check: Check
    built_with: Mapping[str, str]
    source: Source
    rebuild: str
    rotated: bool = False
    exact_pairs: bool = False

    @property
    def may_grow(self) -> bool:
        """Whether an export with a larger --max-context has a longer context; True if the exporter did not say."""
        longest = self.source.options.get("longest_context")
        return not isinstance(longest, int) or self.limits.context < longest

    @property
    def quantized(self) -> bool:
        """Whether weights are integers; each row then costs a larger share of a pass."""
        return self.precision in ("int8", "int4")

    @property
    def engine_id(self) -> str:
        """A short hash over the hashes of all files of the export."""
        return _short_hash({name: file.sha256 for name, file in self.files.items()})

    @property
    def tuning_id(self) -> str | None:
        """A short hash over the tuning, with the hashes of its files; None without one."""
        return None if self.tuning is None else _short_hash(dataclasses.asdict(self.tuning))

    def graph(self, name: str) -> Graph:
        """The graph with this name, from the export or from the tuning."""
        return self.graphs[name] if name in self.graphs or self.tuning is None else self.tuning.graphs[name]

    def to_json(self) -> str:
        """The content of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
