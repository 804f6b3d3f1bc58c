"""The Llama-like transformer in plain numpy, in float32: the reference that every export is checked against.

It shares nothing with the exported graph but the checkpoint: it has no cache and uses one dense mask. Weights are read one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Checkpoint, Weights
from ..graphs.weights import row_chunks
from ..hadamard import spread

Seen = Callable[[str, np.ndarray], None]
"""Called with the name of a layer's matrix, as in Arch.linears, and its inputs [n, inputs]."""


def _ignore(matrix: str, inputs: np.ndarray) -> None: ...


def reference_logits(checkpoint: Checkpoint, tokens: np.ndarray, depth: np.ndarray, mask: np.ndarray, layers: Iterable[int]) -> np.ndarray:
    """Logits float32 [n, V] of a token tree: tokens [n], depth [n] (also the position) and ancestor mask [n, n]. ``layers``: those that are
    computed, one after the other."""
    arch = checkpoint.arch
    cos, sin = (table[depth][:, None, :] for table in arch.rope.tables(arch.head_dim, int(depth.max()) + 1))
    hidden = np.stack([checkpoint.read("model.embed_tokens.weight", int(token), int(token) + 1)[0] for token in tokens])
    for layer in layers:
        prefix = f"model.layers.{layer}."
        hidden = decoder_layer(checkpoint, arch, prefix, norm(checkpoint, arch, prefix + "input_layernorm", hidden), hidden, cos, sin, mask)
    head = "model.embed_tokens" if arch.tied_head else "lm_head"
    return linear(checkpoint, head, norm(checkpoint, arch, "model.norm", hidden))


@np.errstate(over="ignore")  # exp overflows for a very negative gate; the quotient is then 0, which is right
def decoder_layer(
    weights: Weights,
    arch: Arch,
    prefix: str,
    normed: np.ndarray,
    residual: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    mask: np.ndarray,
    seen: Seen = _ignore,
) -> np.ndarray:
    """One transformer layer over all n rows. Attention reads ``normed`` (wider than H in a draft's first layer); its result is added to
    ``residual`` [n, H]. cos and sin [n, 1, head_dim / 2], mask [n, n]. Returns [n, H]."""
    hidden = residual + _attention(weights, arch, prefix, normed, cos, sin, mask, seen)
    normed = norm(weights, arch, prefix + "post_attention_layernorm", hidden)
    seen("gate_up", normed)
    gate = linear(weights, prefix + "mlp.gate_proj", normed)
    up = linear(weights, prefix + "mlp.up_proj", normed)
    activated = spread(gate / (1 + np.exp(-gate)) * up, arch.spread)
    seen("down", activated)
    return np.asarray(hidden + linear(weights, prefix + "mlp.down_proj", activated))


def _attention(
    checkpoint: Weights, arch: Arch, prefix: str, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, mask: np.ndarray, seen: Seen
) -> np.ndarray:
    name = prefix + "self_attn."
    seen("qkv", x)
    q, k, v = (linear(checkpoint, f"{name}{part}_proj", x, arch.qkv_bias).reshape(len(x), -1, arch.head_dim) for part in "qkv")
    if arch.qk_norm:
        q, k = norm(checkpoint, arch, name + "q_norm", q), norm(checkpoint, arch, name + "k_norm", k)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    groups = arch.heads // arch.kv_heads
    scores = np.einsum("ihd,jhd->hij", q, k.repeat(groups, axis=1)) / np.sqrt(arch.head_dim)
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    context = np.einsum("hij,jhd->ihd", weights, v.repeat(groups, axis=1)).reshape(len(x), -1).astype(x.dtype)
    seen("o", context)
    return linear(checkpoint, name + "o_proj", context, arch.output_bias)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def norm(checkpoint: Weights, arch: Arch, name: str, x: np.ndarray) -> np.ndarray:
    """RMSNorm over the last axis, with the stored weight ``name``."""
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + arch.rms_eps)
    return np.asarray(x * scale * checkpoint.read(f"{name}.weight"))


def linear(checkpoint: Weights, name: str, x: np.ndarray, bias: bool = False) -> np.ndarray:
    """x [..., inputs] times the stored matrix ``name`` [outputs, inputs], read in chunks of rows."""
    # Large chunks: the threads of a matrix product wait for each other, which costs more than the product where they share their cores.
    product = np.concatenate([x @ chunk.T for chunk in row_chunks(checkpoint, f"{name}.weight", chunks=32)], axis=-1)
    return product + checkpoint.read(f"{name}.bias") if bias else product
