"""How far quantized engines are from float32: every engine reads the reference's answers and says what it would have chosen."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scripts.peers.compare import Closeness, closeness
from scripts.peers.contenders import PeerContender
from scripts.peers.errors import PeerUnavailable
from scripts.peers.turns import Bench


def teacher_forced(bench: Bench, arm: PeerContender, options: dict[str, Any], answers: list[list[int]]) -> list[np.ndarray]:
    """The arm's logits for every token of ``answers``, [tokens, vocabulary] each. Raises PeerUnavailable."""
    directory = bench.work / "logits" / arm.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    job = dataclasses.replace(bench.job(arm, options), answers=answers, logits_dir=str(directory))
    bench.run(arm, job, f"{arm.name}-logits")
    found = [np.load(directory / f"{number}.npy") for number in range(len(answers))]
    shutil.rmtree(directory)
    return found


def all_closeness(
    bench: Bench,
    reference: PeerContender,
    arms: Sequence[PeerContender],
    options: Mapping[str, dict[str, Any]],
    answers: list[list[int]],
    say: Callable[[str], None],
) -> tuple[dict[str, Closeness], list[np.ndarray]]:
    """Every plain arm against the reference's logits, which are returned too; an arm that gives none is left out, which ``say`` says."""
    true = teacher_forced(bench, reference, options[reference.name], answers)
    found = {}
    for arm in arms:
        if arm.speculates or arm.name == reference.name:
            continue
        try:
            found[arm.name] = closeness(list(zip(true, teacher_forced(bench, arm, options[arm.name], answers), strict=True)))
            say(f"{arm.name}: KL {found[arm.name].mean_kl:.2g}, agreement {found[arm.name].agreement:.3f}")
        except PeerUnavailable as error:
            say(f"{arm.name}: no logits, {error}")
    return found, true
