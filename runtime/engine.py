"""Checks an engine directory and loads it: EngineChoice says how it will run, LoadedEngine is what a Decoder and its forks share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from policy import CorrectedLatency, LatencyModel, TreeSpec, default_latency

from .backends.base import Backend
from .backends.cpu.processor import usable_cores, usable_memory
from .backends.open import open_backend
from .constraints.grammars import Grammars
from .drafters.past import Past, PastAnswers
from .drafters.registry import DRAFTERS, DrafterKind, default_drafter
from .errors import EngineDirError, memory_errors
from .manifest.load import find_engine_dir, load_manifest
from .manifest.schema import BACKENDS, Manifest
from .manifest.tuning import Tuning
from .policies.load import default_tree, load_net, tuned_here
from .policies.registry import PolicyContext
from .text.tokenizer import Tokenizer

DEVICES = ("cpu", "cuda")
_log = logging.getLogger("resps")


@dataclass(frozen=True)
class EngineChoice:
    """A checked directory and how to run it; nothing heavy is loaded yet. ``tuning``: the tuning that is valid here, or None."""

    directory: Path
    manifest: Manifest
    backend: str
    device: str
    drafter: DrafterKind
    threads: int
    tuning: Tuning | None

    @property
    def default_tree(self) -> TreeSpec:
        """The fixed tree of this drafter and precision without a tuning."""
        return default_tree(self.drafter, self.manifest)

    @property
    def fixed_tree(self) -> TreeSpec:
        """The best known fixed tree."""
        return TreeSpec(*self.tuning.static) if self.tuning else self.default_tree

    @property
    def latency(self) -> LatencyModel:
        """The measured latencies of this machine, or default ones."""
        if self.tuning:
            return self.tuning.latency
        draft = self.manifest.draft
        return default_latency(self.manifest.quantized, draft is not None and draft.one_pass is not None)


@dataclass(frozen=True)
class LoadedEngine:
    """A loaded engine. ``grammars``: compiled constraints. ``backend``: holds its memory and graphs; forks share its weights. ``past``: the
    answers that later requests may look up, those of forks included; None if none are kept."""

    choice: EngineChoice
    tokenizer: Tokenizer
    grammars: Grammars
    backend: Backend
    past: PastAnswers | None

    def fork(self, reload_tuning: bool = False) -> LoadedEngine:
        """A LoadedEngine over the same weights with its own memory. Raises GpuMemoryError if the GPU has no room for it, and EngineDirError
        if the directory's tuning is to be read again and cannot be used."""
        if not reload_tuning:
            return replace(self, backend=self.backend.fork())
        choice = _retuned(self.choice)
        return replace(self, choice=choice, backend=self.backend.fork(choice.manifest))

    def past_of(self, tenant: str | None, store: bool) -> Past | None:
        """The past answers that a request of ``tenant`` may look up. ``store``: whether its own answer is kept."""
        return self.past.of(tenant, store) if self.past else None

    def forget(self) -> None:
        """Drop all past answers, those of forks included."""
        if self.past is not None:
            self.past.forget()

    def policy_context(self, lanes: int) -> PolicyContext:
        """What policies of a Decoder with so many lanes are built from."""
        choice, latency = self.choice, self.choice.latency
        costs = CorrectedLatency(latency.alone() if lanes == 1 else latency.for_lanes())
        sizes = choice.manifest.tree_sizes if choice.manifest.tensorrt else None
        return PolicyContext(choice.tuning, choice.fixed_tree, sizes, partial(load_net, self.backend), lanes, costs)


def choose_engine(
    engine_dir: Path,
    *,
    draft: str | None,
    backend: str | None,
    device: str | None,
    threads: int | None,
    verify: bool | None,
    tuned: bool = True,
) -> EngineChoice:
    """Find and check a directory. None means the default: what it was exported for, and the cores that this process may use.
    Without ``tuned`` its tuning is left out.

    Raises EngineDirError if the directory is missing, incomplete, changed or for another device, ValueError for unknown names.
    """
    for what, value, choices in (("drafter", draft, DRAFTERS), ("backend", backend, BACKENDS), ("device", device, DEVICES)):
        check_one_of(what, value, tuple(choices))
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    directory = find_engine_dir(engine_dir)
    manifest = load_manifest(directory, verify=verify, backend=backend, tuned=tuned)
    device = device or ("cpu" if manifest.tensorrt is None else "cuda")
    drafter = DRAFTERS[draft] if draft else default_drafter(manifest.draft is not None, device)
    if drafter.uses_draft_model and manifest.draft is None:
        raise EngineDirError(f"{directory} holds no draft model — export with --draft-weights, or choose --draft ngram")
    threads = threads or usable_cores()
    tuning = tuned_here(manifest, threads) if drafter.uses_draft_model else None
    return EngineChoice(directory, manifest, backend or manifest.backend, device, drafter, threads, tuning)


def _retuned(choice: EngineChoice) -> EngineChoice:
    """The same engine with the tuning that its directory has now. Raises EngineDirError if that is not valid here, and if the directory
    holds another engine."""
    manifest = load_manifest(choice.directory, backend=choice.backend)
    if replace(manifest, tuning=None) != replace(choice.manifest, tuning=None):
        raise EngineDirError(f"{choice.directory} was exported again — restart to use the new engine")
    tuning = tuned_here(manifest, choice.threads) if choice.drafter.uses_draft_model else None
    if manifest.tuning and choice.drafter.uses_draft_model and tuning is None:
        raise EngineDirError(
            f"the tuning in {choice.directory} is not for this engine, machine and number of threads — tune it: resps-tune"
        )
    return replace(choice, manifest=manifest, tuning=tuning)


def load_engine(choice: EngineChoice, lanes: int = 1, past_mib: int = 0) -> LoadedEngine:
    """Load the tokenizer and open the backend for ``lanes`` requests at a time. ``past_mib``: MiB for past answers, 0 keeps none. Raises
    ValueError if it is negative, EngineDirError, and GpuMemoryError if the GPU is too small."""
    if past_mib < 0:
        raise ValueError(f"past_mib must be 0 or more, not {past_mib}")
    tokenizer = Tokenizer(choice.directory, choice.manifest.tokens)
    size, memory = sum(file.bytes for file in choice.manifest.files.values()), usable_memory()
    if choice.device == "cpu" and memory is not None and size > memory:  # the system would kill the process without a word
        text = "the engine has %d MiB, this process may use %d — give it more memory, or export with a lower --precision"
        _log.warning(text, size >> 20, memory >> 20)
    with memory_errors():
        backend = open_backend(choice.directory, choice.manifest, choice.backend, choice.device, choice.threads, lanes)
        grammars = Grammars(tokenizer, choice.manifest.shape.vocab, choice.manifest.tokens.stop)
        past = PastAnswers(past_mib << 20) if past_mib and choice.drafter.looks_up else None
        return LoadedEngine(choice, tokenizer, grammars, backend, past)


def check_one_of(what: str, value: str | None, choices: Sequence[str]) -> None:
    """Raises ValueError, which lists ``choices``, if ``value`` is neither None nor one of them."""
    if value not in (None, *choices):
        raise ValueError(f"unknown {what} {value!r} — choose from {', '.join(choices)}")
