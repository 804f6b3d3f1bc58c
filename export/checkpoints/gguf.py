"""GGUF checkpoints: tensor names, shapes and the order of rotary dimensions are translated to Hugging Face's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .arch import arch_from_config
from .gguf_header import check_header
from .safetensors import files_fingerprint

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


class GgufCheckpoint:
    """One GGUF file. Quantized tensors are dequantized to float32, and those values count as the exact weights of the model.

    Raises CheckpointError for a damaged or incomplete file, UnsupportedModel for an architecture that the graphs cannot express.
    """

    def __init__(self, file: Path) -> None:
        import gguf

        self.path = file
        check_header(file)
        try:
            self._reader = gguf.GGUFReader(file)
        except Exception as error:  # on a damaged header the reader may raise any type
            raise CheckpointError(f"cannot read {file}: {error} — the file is truncated or damaged, download it again") from None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        try:
            config = self._config()
        except (TypeError, ArithmeticError) as error:  # a string where a number belongs, or zero heads
            raise CheckpointError(f"cannot read {file}: its header has a value that cannot be used ({error}) — download it again") from None
        self.arch = arch_from_config(config)

    def field(self, key: str, default: Any = None) -> Any:
        """A metadata value, or ``default`` if the header lacks the key. Raises CheckpointError for text that is not UTF-8."""
        field = self._reader.get_field(key)
        try:
            return default if field is None else field.contents()
        except ValueError as error:
            raise CheckpointError(f"cannot read {key} in {self.path}: {error} — the file is damaged, download it again") from None

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
            return stored

        if "rope_freqs.weight" in self._tensors:
            raise CheckpointError(
                f"{self.path} contains precomputed rotary frequencies, which cannot be read — export from the Hugging Face checkpoint"
            )
        heads, hidden = value("attention.head_count"), value("embedding_length")
        head_dim = self.field(f"{kind}.attention.key_length", hidden // heads)
        rope_type, length = self.field(f"{kind}.rope.scaling.type", "none"), self.field(f"{kind}.rope.scaling.original_context_length")
        scaling = {"rope_type": rope_type, "factor": value("rope.scaling.factor", 1.0), "original_max_position_embeddings": length}
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
            "rope_scaling": None if rope_type == "none" else scaling,
            "partial_rotary_factor": value("rope.dimension_count", head_dim) / head_dim,
            "attention_bias": kind != "qwen2" and "blk.0.attn_q.bias" in self._tensors,
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

    def _tensor(self, name: str) -> Any:
        stored = _TOP_NAMES.get(name)
        if stored is None:
            _, _, layer, rest = name.split(".", 3)
            part, _, kind = rest.rpartition(".")
            stored = f"blk.{layer}.{_LAYER_NAMES.get(part, part)}.{kind}"
        if stored not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {stored!r} — the file is incomplete or of another model")
        return self._tensors[stored]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [outputs, inputs] for a matrix. Raises CheckpointError if the file lacks it."""
        return tuple(int(n) for n in reversed(self._tensor(name).shape))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor as float32. Raises CheckpointError if the file lacks it."""
        from gguf.quants import dequantize

        tensor = self._tensor(name)
        heads = {"q_proj": self.arch.heads, "k_proj": self.arch.kv_heads}.get(name.split(".")[-2])
        if heads and self.arch.model_type in ("llama", "mistral"):
            # llama.cpp stores the rows of q and k in interleaved rotary order, Hugging Face and we in rotate-half order.
            # The whole tensor is read because reordering moves rows between slices.
            whole = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            rotated = whole.reshape(heads, -1, 2, *whole.shape[1:]).swapaxes(1, 2).reshape(whole.shape)
            return np.ascontiguousarray(rotated[start:stop])
        return np.asarray(dequantize(tensor.data[start:stop], tensor.tensor_type), np.float32)

    def fingerprint(self) -> list[list[Any]]:
        """[file name, size, mtime_ns] of the file."""
        return files_fingerprint([self.path])
