"""The target as the commands open it, and the conversations that it writes as training data."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import PromptError
from runtime.text.tokenizer import Tokenizer

from ...checkpoints.fetch import locate, open_checkpoint
from ...checkpoints.models import model_entry
from ...checkpoints.safetensors import Checkpoint
from ...text.read import text_of
from ..budget import expect_room, generation_bytes
from ..errors import TrainingError
from ..target import TorchTarget, compute_type, torch_device
from .corpus import ShardWriter, text_lines
from .generate import generate_conversations
from .seed_prompts import LONG_TEXT, seed_prompts
from .segments import TemplateTokens, plan_conversation, template_tokens

ROOM = 448  # tokens of a conversation beside a long text: the template, the task and an answer


@dataclass(frozen=True)
class TrainingTarget:
    """The target whose conversations are collected: its weights, its tokenizer and its chat template."""

    checkpoint: Checkpoint
    text: Tokenizer
    template: TemplateTokens


def open_target(model: str, weights: str | None) -> TrainingTarget:
    """Find the target as resps-export does. Raises UnknownModel, CheckpointError, UnsupportedModel, and TrainingError if it has no chat
    template."""
    entry = model_entry(model)
    checkpoint = open_checkpoint(locate(entry, weights))
    side = text_of(checkpoint, entry.chat_template)
    with tempfile.TemporaryDirectory() as scratch:
        text = Tokenizer(Path(scratch), side.write(Path(scratch)))
    try:
        template = template_tokens(text, tuple(side.stop))
    except PromptError as error:
        reason, _, _ = str(error).partition(" — ")
        raise TrainingError(f"a draft is trained on chats, but {reason} — give weights with a usable chat template") from None
    return TrainingTarget(checkpoint, text, template)


@dataclass(frozen=True)
class Generation:
    """How the target runs: ``batch`` conversations side by side, each of at most ``capacity`` tokens, on ``device``."""

    batch: int
    capacity: int
    device: str


def collect_words(
    source: TrainingTarget,
    out: Path,
    generation: Generation,
    seed: int,
    tokens: int,
    kinds: Sequence[str],
    long_texts: Path | None,
    say: Callable[[str], None],
    progress: Callable[[str, int, int, str], None],
) -> int:
    """Let the target write conversations until ``tokens`` tokens are in shards; returns how many are. ``kinds``: of text, empty for all.
    ``long_texts``: a file of them, one a line. ``say`` gets what it needs of the machine.

    Raises TrainingError if ``out`` has the shards of this seed already, if the device is missing, if the machine is too small, or if the
    file cannot be used."""
    device = torch_device(generation.device)
    texts = _read_long_texts(long_texts, kinds, generation.capacity, source) if long_texts else []
    writer, choice = ShardWriter(out, f"words-{seed:03d}"), random.Random(seed)
    kind = compute_type(device)
    need = generation_bytes(source.checkpoint.arch, generation.batch, generation.capacity, tokens, kind.itemsize)
    say(expect_room(out, need, device))
    target = TorchTarget(source.checkpoint, generation.batch, generation.capacity, device, kind)
    plans = (plan_conversation(each, source.text, source.template, choice) for each in seed_prompts(seed, kinds, texts))

    def report(under_way: int) -> None:
        progress("words", min(writer.written, tokens), tokens, f"{under_way:,} tokens under way")

    for conversation in generate_conversations(target, plans, generation.batch, source.template.stop, seed, report):
        writer.add(conversation)
        if writer.written >= tokens:
            break
    writer.flush()
    progress("words", tokens, tokens, "")
    return writer.written


def _read_long_texts(file: Path, kinds: Sequence[str], capacity: int, source: TrainingTarget) -> list[str]:
    """The texts of ``file``. Raises TrainingError if nobody asked for such conversations, or if one does not fit into them."""
    if kinds and LONG_TEXT not in kinds:
        raise TrainingError(f'--long-texts is for the kind "{LONG_TEXT}", which is not asked for — add --text "{LONG_TEXT}"')
    lines, room = text_lines(file), capacity - ROOM
    for number, line in lines:
        if (count := len(source.text.encode_raw(line))) > room:
            raise TrainingError(
                f"{file} line {number} has {count} tokens, a conversation of {capacity} has room for {max(0, room)} — shorten it, or raise "
                "--capacity"
            )
    if not lines:
        raise TrainingError(f"{file} has no text — write one text a line")
    return [line.strip() for _, line in lines]
