"""Opens what a training run needs, and begins or continues it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from runtime.bench.svg import expect_matplotlib

from ..checkpoints.draft_checkpoint import open_draft
from .budget import CONVERSATION_BYTES, expect_room, training_bytes
from .draft import expect_trainable
from .errors import TrainingError
from .run import TrainingRun, TrainingSettings, saved_run
from .states import state_bytes
from .target import compute_type, torch_device
from .words.collect import open_target
from .words.corpus import read_corpus, read_lines


def start(
    model: str,
    weights: str | None,
    device: str,
    sources: Sequence[Path],
    out: Path,
    draft: Path | None,
    settings: TrainingSettings,
    progress: Callable[[str, int, int, str], None],
) -> Iterator[str]:
    """Train in ``out``; yields lines for the user, first what it needs of the machine.

    ``draft``: the checkpoint that a new run begins with. Raises TrainingError, CheckpointError, UnsupportedModel, UnknownModel, and
    BenchError without matplotlib."""
    expect_matplotlib("train")
    where, source = torch_device(device), open_target(model, weights)
    arch = source.checkpoint.arch
    given = open_draft(draft, source.checkpoint) if draft else None
    if given:
        expect_trainable(given, arch)
    corpus = read_corpus(sources, arch.vocab, lambda file: read_lines(file, source.text.encode_raw, source.template))
    known = {each.text for each in corpus}
    if unknown := settings.weights.keys() - known:
        raise TrainingError(f"the data has no text of the kind {min(unknown)} — its kinds are {', '.join(sorted(known))}")
    out.mkdir(parents=True, exist_ok=True)
    longest = min(settings.batch_tokens, max(map(len, corpus), default=0))
    saved = saved_run(out, mapped=True)
    goes_on = (
        saved and f"goes on after {saved['updates']:,} updates with the run's own draft: --draft, --vocab and --norms are of a new run only"
    )
    vocab = len(saved["tokens"]) if saved else len(given.tokens) if given else min(settings.vocab, arch.vocab)
    keep = min(settings.keep, sum(map(len, corpus)) * state_bytes(arch.hidden))
    on_cpu = where.type == "cpu"
    need = training_bytes(arch, vocab, settings.batch_tokens, longest, settings.steps, compute_type(where).itemsize, keep, on_cpu)
    need = need if where.type == "cuda" else need.beside(CONVERSATION_BYTES * len(corpus) + 5 * sum(map(len, corpus)))
    yield expect_room(out, need, where)
    del saved  # else what it has mapped stays on disk when the file is replaced
    if goes_on:
        yield goes_on
    yield from TrainingRun(
        source.checkpoint, corpus, out, replace(settings, keep=keep), where, given, progress, need.rest if on_cpu else None
    ).train()
