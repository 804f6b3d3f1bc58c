"""Logits of every engine over the same answers, those of the float32 reference: how far are quantized engines from it?"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scripts.peers.compare import Closeness, closeness
from scripts.peers.contenders import PeerContender
from scripts.peers.environments import PeerUnavailable
from scripts.peers.turns import Bench


def teacher_forced(bench: Bench, contender: PeerContender, options: dict[str, Any], answers: list[list[int]]) -> list[np.ndarray]:
    """The contender's logits at every token of ``answers``, [tokens, vocabulary] each. Raises PeerUnavailable."""
    directory = bench.work / "logits" / contender.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    job = dataclasses.replace(bench.job(contender, options), answers=answers, logits_dir=str(directory))
    bench.run(contender, job, f"{contender.name}-logits")
    logits = [np.load(directory / f"{number}.npy") for number in range(len(answers))]
    shutil.rmtree(directory)
    return logits


def all_closeness(
    bench: Bench,
    reference: PeerContender,
    contenders: Sequence[PeerContender],
    options: Mapping[str, dict[str, Any]],
    answers: list[list[int]],
    say: Callable[[str], None],
) -> tuple[dict[str, Closeness], list[np.ndarray]]:
    """Closeness of every plain contender to the reference, and the reference's logits. A contender that fails is reported by ``say``."""
    reference_logits = teacher_forced(bench, reference, options[reference.name], answers)
    results = {}
    for contender in contenders:
        if contender.speculates or contender.name == reference.name:
            continue
        try:
            other = teacher_forced(bench, contender, options[contender.name], answers)
            results[contender.name] = result = closeness(list(zip(reference_logits, other, strict=True)))
            say(f"{contender.name}: KL {result.mean_kl:.2g}, agreement {result.agreement:.3f}")
        except PeerUnavailable as error:
            say(f"{contender.name}: no logits, {error}")
    return results, reference_logits
