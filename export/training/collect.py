"""Collects training data in shards: conversations that the target writes now, or that it wrote earlier."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import torch

from runtime.text.tokenizer import Tokenizer
from runtime.text_files import read_text

from ..checkpoints.fetch import locate, open_checkpoint
from ..checkpoints.models import model_entry
from ..checkpoints.safetensors import Checkpoint
from ..text.read import text_of
from .errors import TrainingError
from .generate import generate_conversations
from .seed_prompts import seed_prompts
from .segments import ANSWER, PROMPT, TEMPLATE, Segment, TemplateTokens, plan_conversation, template_tokens
from .shards import ShardWriter
from .target import TorchTarget, torch_device

SEED_CHARACTERS = 600  # most characters of a library text in a seed prompt


@dataclass(frozen=True)
class TrainingTarget:
    """The target whose conversations are collected: its weights, its tokenizer and its chat template."""

    checkpoint: Checkpoint
    text: Tokenizer
    template: TemplateTokens


def open_target(model: str, weights: str | None) -> TrainingTarget:
    """Find the target as resps-export does. Raises UnknownModel, CheckpointError and UnsupportedModel."""
    entry = model_entry(model)
    checkpoint = open_checkpoint(locate(entry, weights))
    side = text_of(checkpoint, entry.chat_template)
    with tempfile.TemporaryDirectory() as scratch:
        text = Tokenizer(Path(scratch), side.write(Path(scratch)))
    return TrainingTarget(checkpoint, text, template_tokens(text, tuple(side.stop)))


@dataclass(frozen=True)
class Generation:
    """How the target runs: ``batch`` conversations side by side, each of at most ``capacity`` tokens, on ``device``."""

    batch: int
    capacity: int
    device: str


def collect_words(source: TrainingTarget, out: Path, generation: Generation, seed: int, tokens: int) -> Iterator[str]:
    """Let the target write conversations until ``tokens`` tokens are in shards; yields a line for the user per shard.

    Raises TrainingError if ``out`` has the shards of this seed already, or if the device is missing."""
    writer, choice = ShardWriter(out, f"words-{seed:03d}"), random.Random(seed)
    plans = (plan_conversation(each, source.text, source.template, choice) for each in seed_prompts(seed, SEED_CHARACTERS))
    yield from _collect(source, plans, writer, generation, seed, tokens)


def collect_answers(source: TrainingTarget, out: Path, generation: Generation, file: Path) -> Iterator[str]:
    """Compute the hidden states of the conversations in ``file``; yields a line for the user per shard.

    Raises TrainingError for a malformed file, if ``out`` has the shards of this file already, or if the device is missing."""
    writer, plans = ShardWriter(out, f"answers-{file.stem}"), read_answers(file, source)
    tokens = sum(min(generation.capacity, sum(len(segment.given) for segment in plan)) for plan in plans)
    filler = [Segment(TEMPLATE, source.template.before_user)]  # keeps the batch full until the last conversation is done
    yield from _collect(source, chain(plans, repeat(filler)), writer, generation, 0, tokens)


def read_answers(file: Path, source: TrainingTarget) -> list[list[Segment]]:
    """The conversations of JSON lines with ``prompt``, ``answer`` and perhaps ``finished``: false for an answer that was cut."""
    encode, template, plans = source.text.encode_raw, source.template, []
    try:
        lines = [(number, line) for number, line in enumerate(read_text(file).split("\n"), 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise TrainingError(f"{file} is not UTF-8 text (byte {error.start}) — convert it first") from None
    for number, line in lines:
        try:
            each = json.loads(line)
            prompt, answer = encode(each["prompt"]), encode(each["answer"])
            end = [template.end] if each.get("finished", True) else []
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{file} line {number} has no prompt and answer ({error!r}) — give JSON lines with both") from None
        user = [Segment(TEMPLATE, template.before_user), Segment(PROMPT, prompt), Segment(TEMPLATE, template.after_user)]
        plans.append([*user, Segment(ANSWER, answer + end)])
    return plans


def _collect(
    source: TrainingTarget, plans: Iterator[list[Segment]], writer: ShardWriter, generation: Generation, seed: int, tokens: int
) -> Iterator[str]:
    target = TorchTarget(source.checkpoint, generation.batch, generation.capacity, torch_device(generation.device), torch.bfloat16)
    began = time.monotonic()
    for conversation in generate_conversations(target, plans, generation.batch, source.template.stop, seed):
        if bool((conversation.kinds != TEMPLATE).any()) and writer.add(conversation):
            yield f"{writer.written:,} tokens, {writer.written / (time.monotonic() - began):.0f} tokens/s"
        if writer.written >= tokens:
            break
    writer.flush()
