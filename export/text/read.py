"""The text side of any checkpoint."""

from __future__ import annotations

from ..checkpoints.fetch import TEXT_FILES, planned_path
from ..checkpoints.gguf import GgufCheckpoint
from ..checkpoints.models import ModelEntry
from ..checkpoints.safetensors import Checkpoint
from .directory import text_of_directory
from .gguf_text import text_of_gguf
from .side import TextSide


def text_of(checkpoint: Checkpoint, chat_template: str | None = None) -> TextSide:
    """Read it. ``chat_template`` is used if a Hugging Face directory has none. Raises CheckpointError, UnsupportedModel."""
    return text_of_gguf(checkpoint) if isinstance(checkpoint, GgufCheckpoint) else text_of_directory(checkpoint.path, chat_template)


def planned_text(entry: ModelEntry, weights: str | None) -> TextSide:
    """That of a target on the hub, for a dry run. Only the files about text are downloaded."""
    return text_of_directory(planned_path(entry, weights, TEXT_FILES), entry.chat_template)
