"""The checkpoints that an engine directory was exported from."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from runtime.errors import BenchError
from runtime.manifest.schema import Manifest

from ..checkpoints.draft_checkpoint import DraftCheckpoint, open_draft
from ..checkpoints.fetch import locate, locate_draft, open_checkpoint
from ..checkpoints.models import ModelEntry, model_entry
from ..checkpoints.safetensors import Checkpoint
from ..text.read import text_of
from ..text.side import TextSide


@dataclass(frozen=True)
class Pair:
    """A target, its text side, and its draft."""

    target: Checkpoint
    text: TextSide
    draft: DraftCheckpoint


def open_pair(manifest: Manifest, weights: str | None, draft_weights: str | None) -> Pair:
    """Open the checkpoints of a directory. ``weights``, ``draft_weights``: where they are now, None if they are where its export found
    them. Raises BenchError if the directory holds another draft, CheckpointError and UnsupportedModel."""
    words = shlex.split(manifest.rebuild)

    def given(option: str) -> str | None:
        return words[words.index(option) + 1] if option in words[:-1] else None

    model, weights = given("--model"), weights or given("--weights")
    entry = model_entry(model) if model else ModelEntry(weights or "", None)
    target = open_checkpoint(locate(entry, weights))
    directory = locate_draft(entry, draft_weights or given("--draft-weights"))
    if directory is None:
        raise BenchError("the engine does not say where its draft came from — name it with --draft-weights")
    draft = open_draft(directory, target)
    if manifest.draft is None or draft.sha256 != manifest.draft.weights_sha256:
        raise BenchError(f"the engine was exported from another draft than {directory} — name it with --draft-weights, or export again")
    return Pair(target, text_of(target, entry.chat_template), draft)
