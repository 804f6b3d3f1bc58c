"""GGUF checkpoints: tensor names, shapes and the order of rotary dimensions are translated to Hugging Face's. What the header leaves out is
as in llama.cpp."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from .arch import arch_from_config
from .finite import expect_finite
from .gguf_header import check_header
from .quantized.ggml import FORMS, integers
from .quantized.stored import Form, StoredIntegers
from .safetensors import files_fingerprint, refuse_duplicate
from .target_tensors import check_names, expected_tensors

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_PARTS = {stored: part for part, stored in _LAYER_NAMES.items()}
_TOPS = {stored: name for name, stored in _TOP_NAMES.items()}
_FREQUENCIES = "rope_freqs.weight"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class GgufCheckpoint:
    """A GGUF file, or the first of several that belong together. Quantized tensors are dequantized to float32, and those values count as
    the exact weights of the model.

    Raises CheckpointError for a damaged or incomplete file, UnsupportedModel for an architecture, a type of tensor or a tensor that the
    graphs cannot express.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, file: Path) -> None:
        self.path = file
        self._reader = _open(file)
        self._expect_a_model()
        self._tensors, self._file_of = self._all_tensors()
        try:
            config = self._config()
        except ArithmeticError:
            raise CheckpointError(f"cannot read {file}: its header has a value that cannot be used, no heads — download it again") from None
        biases = [f"blk.0.attn_{part}.bias" in self._tensors for part in ("q", "output")]
        self.arch = replace(arch_from_config(config), qkv_bias=biases[0], output_bias=biases[1])
        names = {_canonical(name): name for name in self._tensors}
        if self.arch.model_type == "llama":  # the only one for which llama.cpp reads it
            names.pop(_FREQUENCIES, None)
        check_names(self.arch, names, file, _stored, "header")
        self._check_types()
        self.arch = replace(self.arch, rope=replace(self.arch.rope, factors=self._rope_factors()))

    def field(self, key: str, default: Any = None) -> Any:
        """A metadata value, or ``default`` if the header lacks the key. Raises CheckpointError for text that is not UTF-8."""
        field = self._reader.get_field(key)
        try:
            return default if field is None else field.contents()
        except ValueError as error:
            raise CheckpointError(f"cannot read {key} in {self.path}: {error} — the file is damaged, download it again") from None

    def _expect_a_model(self) -> None:
        """Raises UnsupportedModel for a file that is no language model of a known architecture, or of another byte order."""
        kind, purpose = self.field("general.architecture"), self.field("general.type", "model")
        if purpose != "model":
            raise UnsupportedModel(f"{self.path} is of the type {purpose!r} (general.type), not a model — give the model's own GGUF file")
        if kind not in _ARCHITECTURES:
            raise UnsupportedModel(f"architecture {kind!r} is not supported as GGUF — supported: {', '.join(_ARCHITECTURES)}")
        order = self._reader.endianess.name.lower()
        if order != sys.byteorder:
            raise UnsupportedModel(f"{self.path} is {order}-endian, this machine is not — take a {sys.byteorder}-endian file")

    def _all_tensors(self) -> tuple[dict[str, Any], dict[str, Path]]:
        """The tensors of all files that belong together, and the file of each."""
        count, files = self.field("split.count", 1), [self.path]
        if isinstance(count, int) and count > 1:
            parts = _SPLIT.search(self.path.name)
            if parts is None or int(parts[1]) != 1 or int(parts[2]) != count:
                raise CheckpointError(f"{self.path} is one of {count} files — give the first, which is named *-00001-of-{count:05}.gguf")
            stem = self.path.name[: parts.start()]
            files = [self.path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
        tensors: dict[str, Any] = {}
        file_of: dict[str, Path] = {}
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing: the model has {count} files — download all of them")
            for tensor in (self._reader if file == self.path else _open(file)).tensors:
                refuse_duplicate(tensor.name, file, file_of.get(tensor.name))
                tensors[tensor.name], file_of[tensor.name] = tensor, file
        return tensors, file_of

    def keys(self) -> list[str]:
        """All keys of the metadata."""
        return list(self._reader.fields)

    def _config(self) -> dict[str, Any]:
        """The header as a Hugging Face config.json."""
        kind = self.field("general.architecture")

        def value(key: str, default: Any = None) -> Any:
            stored = self.field(f"{kind}.{key}", default)
            if stored is None:
                raise CheckpointError(f"{self.path} lacks the header field {kind}.{key} — it is not a complete {kind} model")
            if isinstance(stored, list) and len(set(stored)) == 1:
                stored = stored[0]  # one number a layer, all the same
            if isinstance(stored, list | bool) or isinstance(stored, str) != isinstance(default, str):
                raise CheckpointError(
                    f"cannot read {self.path}: its header has a value that cannot be used, {kind}.{key} = {str(stored)[:60]} — download it "
                    "again, or choose another model"
                )
            return stored

        heads, hidden = value("attention.head_count"), value("embedding_length")
        head_dim = value("attention.key_length", hidden // heads)
        for key, usual in (("attention.value_length", head_dim), ("expert_count", 0)):
            if (found := value(key, usual)) != usual:
                raise UnsupportedModel(f"{self.path} has {kind}.{key} = {found}, where {usual} is supported — choose another model")
        return {
            "model_type": kind,
            "hidden_size": hidden,
            "intermediate_size": value("feed_forward_length"),
            "num_hidden_layers": value("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": value("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
            "rope_theta": value("rope.freq_base", 10000.0),
            "rope_scaling": _rope_scaling(value, self.path),
            "partial_rotary_factor": value("rope.dimension_count", head_dim) / head_dim,
            "max_position_embeddings": value("context_length"),
            "vocab_size": self._vocab_size(),
            "tie_word_embeddings": "output.weight" not in self._tensors,
        }

    def _vocab_size(self) -> int:
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            return 0
        if len(embedding.shape) != 2:
            problem = f"token_embd.weight has {len(embedding.shape)} dimensions, not 2"
            raise CheckpointError(f"cannot read {self.path}: {problem} — the file is damaged, download it again")
        return int(embedding.shape[1])

    def _check_types(self) -> None:
        """Raises an error for tensors of another shape than the header asks for, or of a type that cannot be read."""
        from gguf import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        for name, shape in expected_tensors(self.arch).items():
            if self.shape(name) != shape:
                raise CheckpointError(
                    f"{self.path} has {_stored(name)} of the shape {list(self.shape(name))}, its header asks for {list(shape)} — "
                    "the file is damaged, download it again"
                )
            kind = self._tensor(name).tensor_type
            try:
                dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError:
                raise UnsupportedModel(
                    f"{self.path} stores {_stored(name)} as {kind.name}, which cannot be read — take another quantization of the model"
                ) from None

    def _rope_factors(self) -> tuple[float, ...] | None:
        """What llama.cpp divides the rotary frequencies by: Llama 3.1's scaling, worked out when the file was made."""
        tensor = self._tensors.get(_FREQUENCIES)
        if tensor is None:
            return None
        factors = np.asarray(tensor.data, np.float32).reshape(-1)
        if factors.size != self.arch.head_dim // 2 or not (np.isfinite(factors) & (factors > 0)).all():
            problem = f"{_FREQUENCIES} are no rotary factors of heads of {self.arch.head_dim}"
            raise CheckpointError(f"cannot read {self.path}: {problem} — the file is damaged, download it again")
        return tuple(float(factor) for factor in factors)

    def _tensor(self, name: str) -> Any:
        stored = _stored(name)
        if stored not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {stored!r} — the file is incomplete or of another model")
        return self._tensors[stored]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [outputs, inputs] for a matrix. Raises CheckpointError if the file lacks it."""
        return tuple(int(n) for n in reversed(self._tensor(name).shape))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor as float32. Raises CheckpointError if the file lacks it or a number is not finite."""
        from gguf.quants import dequantize

        tensor = self._tensor(name)
        numbers = np.asarray(dequantize(self._raw(name, start, stop), tensor.tensor_type), np.float32)
        expect_finite(numbers, tensor.name, self._file_of[tensor.name])
        return numbers

    def _raw(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Rows [start, stop) as they are stored."""
        data = self._tensor(name).data
        heads = {"q_proj": self.arch.heads, "k_proj": self.arch.kv_heads}.get(name.split(".")[-2])
        if heads and self.arch.model_type == "llama":
            # llama.cpp stores the rows of q and k in interleaved rotary order, Hugging Face and we in rotate-half order.
            order = np.arange(len(data)).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
            return np.asarray(data[order[start:stop]])
        return np.asarray(data[start:stop])

    def form(self, name: str) -> Form | None:
        """How a tensor is stored; None if its values are not integers times a scale."""
        return FORMS.get(self._tensor(name).tensor_type.name)

    def integers(self, name: str, start: int, stop: int) -> StoredIntegers:
        """Rows [start, stop) of a quantized tensor. Raises CheckpointError if a scale is not finite."""
        tensor = self._tensor(name)
        found = integers(self._raw(name, start, stop), tensor.tensor_type.name)
        expect_finite(found.scales, tensor.name, self._file_of[tensor.name])
        return found

    def fingerprint(self) -> list[list[Any]]:
        """As of every checkpoint, of every file."""
        return files_fingerprint(sorted(set(self._file_of.values()) | {self.path}))


def _open(file: Path) -> Any:
    """A reader of one file. Raises CheckpointError if it is damaged."""
    import gguf

    check_header(file)
    try:
        return gguf.GGUFReader(file)
    except Exception as error:  # on a damaged header the reader may raise any type
        raise CheckpointError(f"cannot read {file}: {error} — the file is truncated or damaged, download it again") from None


def _stored(name: str) -> str:
    """Hugging Face's name of a tensor -> GGUF's."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_LAYER_NAMES.get(part, part)}.{kind}"


def _canonical(stored: str) -> str:
    """The inverse of `_stored`; other names stay as they are."""
    block = _BLOCK.fullmatch(stored)
    if block and block[2] in _PARTS:
        return f"model.layers.{int(block[1])}.{_PARTS[block[2]]}.{block[3]}"
    return _TOPS.get(stored, stored)


def _rope_scaling(value: Callable[..., Any], path: Path) -> Mapping[str, Any] | None:
    """The header's rotary scaling as rope_scaling. Without a type it is linear, as in llama.cpp."""
    kind = value("rope.scaling.type", "linear")
    factor = value("rope.scaling.factor", 0.0) or value("rope.scale_linear", 0.0) or 1.0
    magnitude = value("rope.scaling.attn_factor", 1.0)
    usual = {"rope.scaling.yarn_log_multiplier": 0.0, "rope.scaling.yarn_ext_factor": 1.0}
    if kind != "yarn":
        usual["rope.scaling.attn_factor"] = 1.0
    for key, expected in usual.items():
        if (found := value(key, expected)) != expected:
            raise UnsupportedModel(f"{path} has {key} = {found} with rope scaling {kind!r}, which is not supported — choose another model")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    return {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": value("rope.scaling.original_context_length", 0),
        "beta_fast": value("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": value("rope.scaling.yarn_beta_slow", 1.0),
        "attention_factor": magnitude * (1 + 0.1 * float(np.log(factor))) if kind == "yarn" and factor > 0 else None,
    }
