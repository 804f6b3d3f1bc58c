"""The architecture of a Llama-like target: sizes, rotary embedding and switches, read from config.json.

To support a model with another switch, begin here; export/graphs/layers.py and export/parity/reference.py implement the switches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedModel
from .config_values import positive, whole
from .rope import Rope, rope_from_config

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_ANY_LENGTH = 1 << 60


@dataclass(frozen=True)
class Arch:
    """Sizes and switches of a decoder-only transformer of the Llama family.

    ``window``: tokens in the sliding attention window, None for full attention. ``tied_head``: the output matrix is the embedding.
    ``spread``: the inputs of `down` are multiplied by a Hadamard matrix in blocks of this size; 1 leaves them as they are.
    """

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rms_eps: float
    rope: Rope
    max_position: int
    tied_head: bool
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    spread: int = 1

    @property
    def longest_context(self) -> int:
        """Tokens for which the graphs are exact: full attention equals a sliding window's only within the window."""
        return self.max_position if self.window is None else min(self.max_position, self.window)

    @property
    def captured(self) -> tuple[int, ...]:
        """EAGLE-3's usual captured layers: it reads the residual stream *entering* layers 2, n//2 and n-3 (clamped for tiny models)."""
        return tuple(min(max(layer, 0), self.layers - 1) for layer in (2, self.layers // 2, self.layers - 3))

    @property
    def linears(self) -> dict[str, tuple[tuple[str, ...], int, int]]:
        """The matrices of one layer: name -> (checkpoint tensors joined along the outputs, number of outputs, number of inputs)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), q + 2 * kv, self.hidden),
            "o": (("self_attn.o_proj",), self.hidden, q),
            "gate_up": (("mlp.gate_proj", "mlp.up_proj"), 2 * self.intermediate, self.hidden),
            "down": (("mlp.down_proj",), self.hidden, self.intermediate),
        }


def arch_from_config(config: Mapping[str, Any]) -> Arch:
    """Read a Hugging Face ``config.json``, as transformers 4 or 5 writes it. Raises UnsupportedModel if the graphs cannot express the model
    exactly, or if a key is missing or has an impossible value."""
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UnsupportedModel(f"architecture {kind!r} is not supported — supported: {', '.join(MODEL_TYPES)}")
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise UnsupportedModel("only SwiGLU without bias is supported — this config asks for another feed-forward")
    try:
        hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
        rope = rope_from_config(config)
        bias = bool(config.get("attention_bias", False)) and kind in ("llama", "qwen3")  # the others' code does not read it
        windowed = kind == "mistral" or bool(config.get("use_sliding_window"))
        window = config.get("sliding_window", 4096) if windowed else None  # 4096 is transformers' default, null stands for none
        arch = Arch(
            model_type=kind,
            hidden=hidden,
            layers=whole(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=whole(config, "num_key_value_heads", heads),
            head_dim=whole(config, "head_dim", 128 if kind == "qwen3" else hidden // heads),
            intermediate=whole(config, "intermediate_size"),
            vocab=whole(config, "vocab_size", least=0),
            rms_eps=positive(config, "rms_norm_eps", 1e-6),
            rope=rope,
            max_position=whole(config, "max_position_embeddings", 2048, most=_ANY_LENGTH),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            qk_norm=kind == "qwen3",
            window=None if window is None else whole({"sliding_window": window}, "sliding_window", most=_ANY_LENGTH),
        )
        if arch.head_dim % 2:
            raise ValueError(f"heads of {arch.head_dim} numbers (head_dim), of which rotary embedding needs an even count")
        if arch.heads % arch.kv_heads:
            raise ValueError(f"{arch.heads} heads (num_attention_heads) cannot share {arch.kv_heads} (num_key_value_heads)")
        arch.rope.tables(arch.head_dim, 1)  # refuses an unknown or incomplete scaling now, before anything is written
    except KeyError as missing:
        raise UnsupportedModel(f"config.json lacks {missing} — is this a complete {kind} checkpoint?") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModel(f"config.json holds a value that cannot be used: {error} — download it again") from None
    return arch
