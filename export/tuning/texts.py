"""Re-SpS' text state while it is trained: an encoder that remembers what it has read, and what reading costs.

Episodes meet the same places of the recorded answers over and over. An embedding is computed once, the time of a call is charged each time.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from policy import Encode, LatencyModel, Policy
from runtime.backends.cpu.onnxruntime import OrtEngine, open_session
from runtime.policies.encoder import TextEncoder

from ..errors import CheckpointError
from .encoder import Written, write_encoder
from .minilm import packaged_encoder
from .replay.simulation import Answers, Replay, replay

NAME = "resps-text"
PREFIX = "tuned-"  # of all files that a tuning puts into an engine directory

_log = logging.getLogger("resps")


@dataclass(eq=False)
class Texts:
    """``encode``, remembered. ``written``: the files to install. ``calls`` counts how often it was asked."""

    encode: Encode
    written: Written
    calls: int = field(default=0, init=False)
    _known: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    _seconds: list[float] = field(default_factory=list, init=False, repr=False)

    def __call__(self, text: str) -> np.ndarray:
        self.calls += 1
        return self._read(text)

    def _read(self, text: str) -> np.ndarray:
        if text not in self._known:
            started = perf_counter()
            self._known[text] = self.encode(text)
            self._seconds.append(perf_counter() - started)
        return self._known[text]

    @property
    def milliseconds(self) -> float:
        """Of a call that was not remembered, the median so far."""
        return 1000 * statistics.median(self._seconds) if self._seconds else 0.0

    def prepare(self, texts: Iterable[str], seconds: float, progress: Callable[[float], None]) -> None:
        """Read as many of ``texts`` as can be read in ``seconds``."""
        started = perf_counter()
        for text in texts:
            share = (perf_counter() - started) / seconds
            if share >= 1:
                break
            self._read(text)
            progress(share)


def open_texts(folder: Path, threads: int, asked_for: bool) -> Texts | None:
    """The encoder that the papers' text state takes, its graph written into ``folder``, which must stay. Where it cannot be had: raises
    CheckpointError if it was ``asked_for``, else says so and returns None."""
    try:
        return texts_of(packaged_encoder(), folder, threads)
    except CheckpointError as problem:
        if asked_for:
            raise
        _log.warning("%s is left out: %s", NAME, problem)
        return None


def texts_of(source: Path, folder: Path, threads: int) -> Texts:
    """Of the checkpoint in ``source``; on this machine's processor, as the training is."""
    written = write_encoder(source, folder, PREFIX)
    engine = OrtEngine(open_session(folder / written.graph.file, threads), written.graph, {"n": written.pieces}, {})
    return Texts(TextEncoder(engine, folder / written.tokenizer, written.pieces), written)


def places_of(answers: Answers, seed: int) -> list[str]:
    """The text at every place of the answers, in an order that visits all of them alike: who runs out of time has seen some of each."""
    some = [next(iter(traces.values())) for traces in answers]
    places = [(trace, place) for trace in some for place in range(len(trace))]
    return [places[index][0].text(places[index][1]) for index in np.random.default_rng(seed).permutation(len(places))]


def replay_paid(policy: Policy, texts: Texts | None, answers: Answers, latency: LatencyModel) -> Replay:
    """`replay`, the calls of ``texts`` that it made charged."""
    before = texts.calls if texts else 0
    done = replay(policy, answers, latency)
    if texts:
        done.milliseconds += (texts.calls - before) * texts.milliseconds
    return done
