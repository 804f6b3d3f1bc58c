"""An engine directory, chosen and checked, then opened: what a Decoder and its forks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from policy import LatencyModel, TreeSpec, rough_latency

from .backends.base import Backend
from .backends.cpu.processor import physical_cores
from .backends.open import open_backend
from .drafters.registry import DRAFTERS, DrafterKind, default_drafter
from .errors import EngineDirError, enough_memory
from .manifest.load import find_engine_dir, load_manifest
from .manifest.schema import BACKENDS, Manifest
from .manifest.tuning import Tuning
from .policies.load import default_tree, load_net, tuned_here
from .policies.registry import PolicySetting
from .text.tokenizer import Text

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class EngineChoice:
    """Where and how a directory is to run; nothing heavy is loaded yet. ``tuning``: what was tuned, where it holds here."""

    directory: Path
    manifest: Manifest
    backend: str
    device: str
    drafter: DrafterKind
    threads: int
    tuning: Tuning | None

    @property
    def default_tree(self) -> TreeSpec:
        """The tree that is grown when nothing was tuned and nothing else is asked for."""
        return default_tree(self.drafter, self.manifest)

    @property
    def usual_tree(self) -> TreeSpec:
        """The best fixed tree that is known."""
        return TreeSpec(*self.tuning.static) if self.tuning else self.default_tree

    @property
    def latency(self) -> LatencyModel:
        """What rounds cost: as measured here, or as elsewhere."""
        return self.tuning.latency if self.tuning else rough_latency(self.manifest.quantized)


@dataclass(frozen=True)
class LoadedEngine:
    """An open engine: its memory and graphs are ``opened``'s, the weights those of all forks."""

    choice: EngineChoice
    text: Text
    opened: Backend

    def fork(self) -> LoadedEngine:
        """Another one over the same weights, with memory of its own. Raises GpuMemoryError where a GPU has no room for it."""
        return replace(self, opened=self.opened.fork())

    @property
    def policy_setting(self) -> PolicySetting:
        """What policies are made from here."""
        choice = self.choice
        sizes = choice.manifest.tree_sizes if choice.manifest.tensorrt else None
        return PolicySetting(choice.tuning, choice.usual_tree, sizes, partial(load_net, self.opened))


def choose_engine(
    engine_dir: Path,
    *,
    draft: str | None,
    backend: str | None,
    device: str | None,
    threads: int | None,
    verify: bool,
    tuned: bool = True,
) -> EngineChoice:
    """Find and check a directory. None is the default: what it was made for, the physical cores of this process. Without ``tuned`` its
    tuning is left out. Raises EngineDirError when it is missing, unfinished, changed or made for something else, ValueError for names that
    do not exist or do not go together."""
    for what, value, choices in (("drafter", draft, DRAFTERS), ("backend", backend, BACKENDS), ("device", device, DEVICES)):
        expect_one_of(what, value, tuple(choices))
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    directory = find_engine_dir(engine_dir)
    manifest = load_manifest(directory, verify=verify, backend=backend, tuned=tuned)
    device = device or ("cpu" if manifest.tensorrt is None else "cuda")
    drafter = DRAFTERS[draft] if draft else default_drafter(manifest.draft is not None, device)
    if drafter.uses_draft_model and manifest.draft is None:
        raise EngineDirError(f"{directory} holds no EAGLE-3 draft — export with --draft-weights, or choose --draft ngram")
    if drafter.host_only and device == "cuda":
        raise ValueError(f"{drafter.name} works on the CPU only — choose eagle or ngram")
    threads = threads or physical_cores()
    tuning = tuned_here(manifest, threads) if drafter.uses_draft_model else None
    return EngineChoice(directory, manifest, backend or manifest.backend, device, drafter, threads, tuning)


def load_engine(choice: EngineChoice) -> LoadedEngine:
    """Open it. Raises EngineDirError, and GpuMemoryError where a GPU is too small."""
    text = Text(choice.directory, choice.manifest.tokens)
    with enough_memory():
        return LoadedEngine(choice, text, open_backend(choice.directory, choice.manifest, choice.backend, choice.device, choice.threads))


def expect_one_of(what: str, value: str | None, choices: Sequence[str]) -> None:
    """Raises ValueError, which lists ``choices``, for another ``value`` than these and None."""
    if value not in (None, *choices):
        raise ValueError(f"unknown {what} {value!r} — choose from {', '.join(choices)}")
