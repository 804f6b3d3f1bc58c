"""Other readings of a draft's checkpoint: each undoes one mistake that is made with drafts.

Sources: the switches of the published families (export/checkpoints/draft_arch.py), and reports of drafts that accept little: captured
layers (SafeAILab/EAGLE#276, sgl-project/sglang#32334), the output norm (vllm-project/vllm#14464, #42764), the vocabulary map
(verl-project/verl-SpeCo#66), RoPE (sgl-project/SpecForge#265), stale embeddings and heads (TorchSpec#38).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints.arch import Arch
from ..checkpoints.draft_arch import DraftArch
from ..checkpoints.draft_checkpoint import HEAD
from ..checkpoints.rope import Rope
from .replay import Reading

_CONFIG = "in the draft's config.json and export again"
_THETAS = (10000.0, 500000.0, 1000000.0)  # of Llama 2 and of EAGLE's own code, of Llama 3, of Qwen


@dataclass(frozen=True)
class Alternative:
    """``name``: what it reads otherwise. ``fault``: what is wrong if it fits the target better; ``cure``: what to do then. ``level``: where
    it shows first."""

    name: str
    fault: str
    cure: str
    read: Callable[[Reading], Reading]
    level: int = 1


def draft_alternatives(reading: Reading) -> Iterator[Alternative]:
    """Those that need nothing but the draft."""
    yield from _switches(reading)
    yield from _ropes(reading)
    yield from _tensors(reading)
    yield from _maps(reading)


def _switches(reading: Reading) -> Iterator[Alternative]:
    arch = reading.draft.arch
    yield _switched(arch, "norm_before_residual", "the residual of the draft's layer should be {}")
    yield _switched(arch, "norm_output", "the feature fed back should be {}", 2)
    if arch.fc_norm or arch.norm_before_fc:
        yield Alternative(
            "no norm before fc",
            "the features should not be normed before fc",
            f"leave fc_norm and input_norm out of the draft's tensors, set fc_norm and norm_before_fc to false {_CONFIG}",
            lambda old: old.with_arch(fc_norm=False, norm_before_fc=False),
        )
    else:
        for name, what in (("fc_norm", "each captured layer (EAGLE-3.1)"), ("norm_before_fc", "all captured layers together")):
            yield Alternative(
                f"a norm of {what} before fc",
                f"{what} should be normed before fc, and the draft has no such norm",
                f"get the checkpoint with its norm tensors, or add tensors of ones and set {name} to true {_CONFIG}",
                lambda old, name=name: _with_norms(old, name),  # type: ignore[misc]
            )


def _switched(arch: DraftArch, name: str, text: str, level: int = 1) -> Alternative:
    wanted = not getattr(arch, name)
    value = str(wanted).lower()
    fault = text.format("normed" if wanted else "left as it is")
    return Alternative(f"{name} {value}", fault, f"set {name} to {value} {_CONFIG}", lambda old: old.with_arch(**{name: wanted}), level)


def _with_norms(reading: Reading, name: str) -> Reading:
    """With norms before fc whose weights are one."""
    draft, arch = reading.draft, reading.draft.arch
    layers, width = len(arch.captured), arch.target_hidden
    ones = {f"model.fc_norm.{index}.weight": np.ones(width, np.float32) for index in range(layers)}
    ones |= {"model.input_norm.weight": np.ones(layers * width, np.float32)}
    return replace(reading, draft=draft.with_tensors(**ones)).with_arch(**{name: True})


def _ropes(reading: Reading) -> Iterator[Alternative]:
    own, target = reading.draft.arch.layer.rope, reading.draft.target.arch.rope
    ropes = [replace(own, scaling=None, factors=None), replace(own, theta=target.theta), target]
    ropes += [replace(own, theta=theta) for theta in _THETAS]
    for rope in [rope for index, rope in enumerate(ropes) if rope != own and rope not in ropes[:index]]:
        yield Alternative(
            f"RoPE with {_told(rope)}",
            f"the draft's RoPE should have {_told(rope)}, and has {_told(own)}",
            f"set rope_theta and rope_scaling {_CONFIG}",
            lambda old, rope=rope: old.with_layer(rope=rope),  # type: ignore[misc]
        )


def _told(rope: Rope) -> str:
    kind = "llama.cpp's factors" if rope.factors else (rope.scaling or {}).get("rope_type", (rope.scaling or {}).get("type", "no"))
    return f"theta {rope.theta:g} and {kind} scaling"


def _tensors(reading: Reading) -> Iterator[Alternative]:
    draft, again = reading.draft, "get the draft's checkpoint again, or convert it again"
    if draft.arch.own_embedding and draft.arch.layer.hidden == draft.arch.target_hidden:
        yield Alternative(
            "the target's embedding",
            "the draft's own embedding is not what it was trained with: the target's is better",
            f"set embed_requires_grad to false {_CONFIG}",
            lambda old: old.with_arch(own_embedding=False),
        )
    if draft.own_head and draft.arch.layer.hidden == draft.arch.target_hidden:
        yield Alternative(
            "the target's head",
            "the draft's lm_head and its vocabulary map (d2t) do not fit each other: the target's head is better",
            f"{again}, or remove its lm_head and export again",
            _with_targets_head,
        )
    if len(draft.arch.captured) > 1:
        yield Alternative(
            "the highest captured layer first",
            "fc reads the captured layers in the opposite order",
            f"{again}: the lowest layer comes first",
            lambda old: old.with_features([_reversed(answer.features, draft.arch.target_hidden) for answer in old.answers]),
        )
    yield Alternative(
        "the feature before the embedding",
        "q, k and v read the feature before the embedding",
        f"{again}: the embedding's columns come first",
        _with_columns_swapped,
    )


def _maps(reading: Reading) -> Iterator[Alternative]:
    tokens, size = reading.draft.tokens, np.arange(len(reading.draft.tokens))
    maps = {"one higher": tokens + 1, "one lower": tokens - 1, "offsets taken as ids": tokens - size, "ids taken as offsets": tokens + size}
    for name, ids in {**maps, "the first ids of the target": size}.items():
        if ids.min() >= 0 and ids.max() < reading.draft.arch.layer.vocab and not np.array_equal(ids, tokens):
            yield Alternative(
                f"a vocabulary map with {name}",
                f"the draft's vocabulary map (d2t) is wrong: it should be {name}",
                "get d2t and t2d of this draft again, and export again",
                lambda old, ids=ids: replace(old, draft=replace(old.draft, tokens=ids)),  # type: ignore[misc]
            )


def _with_targets_head(reading: Reading) -> Reading:
    draft, rest = reading.draft, {name: tensor for name, tensor in reading.draft.held.items() if name != HEAD}
    bare = replace(draft, own_head=False, held=rest)
    return replace(reading, draft=bare.with_tensors(**{HEAD: bare.read(HEAD)}))


def _reversed(features: np.ndarray, width: int) -> np.ndarray:
    return features.reshape(len(features), -1, width)[:, ::-1].reshape(features.shape)


def _with_columns_swapped(reading: Reading) -> Reading:
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    turned = {name: np.concatenate(np.split(reading.draft.held[name], 2, axis=1)[::-1], axis=1) for name in names}
    return replace(reading, draft=reading.draft.with_tensors(**turned))


def layer_alternatives(captured: tuple[int, ...], target: Arch) -> list[tuple[int, ...]]:
    """Other layers that the draft may have been trained with: EAGLE-3's usual ones, and all of them one lower or higher."""
    near = [tuple(layer + step for layer in captured) for step in (-1, 1)]
    usual = [target.captured] if len(captured) == len(target.captured) else []
    return [layers for layers in dict.fromkeys([*usual, *near]) if layers != captured and min(layers) >= 0 and max(layers) <= target.layers]
