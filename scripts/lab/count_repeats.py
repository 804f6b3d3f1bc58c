"""How often does text repeat itself, and how many tokens would a lookup (runtime/drafters/suffix.py) have got right at every position?

    python -m scripts.lab.count_repeats data                              # shards of `resps-train words`
    python -m scripts.lab.count_repeats --engine-dir DIR FILE.jsonl       # lines with `prompt` and `answer`

Prints the table of docs/lab/lookup.md, "How often text repeats itself", and the rates that policy/lookup.py starts a request with: how
often the first token of a lookup is right, and each further one after a right one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click

from policy.lookup import MATCHED
from runtime.console import run_command
from runtime.drafters.suffix import Index
from runtime.errors import PromptError
from runtime.manifest.load import find_engine_dir, load_manifest
from runtime.text.tokenizer import Text

GUESSES = 8  # tokens of a lookup


@dataclass
class Count:
    """Positions with a match of one length class. ``right``: those where the first token was right; ``accepted``: right tokens before the
    first wrong one, in all; ``tries``: tokens compared after a right one."""

    places: int = 0
    right: int = 0
    accepted: int = 0
    tries: int = 0

    def see(self, accepted: int, guessed: int) -> None:
        self.places += 1
        self.right += accepted > 0
        self.accepted += accepted
        if accepted:
            self.tries += min(accepted, guessed - 1)

    @property
    def first(self) -> float:
        return self.right / self.places if self.places else 0.0

    @property
    def following(self) -> float:
        return (self.accepted - self.right) / self.tries if self.tries else 0.0


def count(tokens: Sequence[int], written: Sequence[bool], counts: dict[int, Count]) -> int:
    """Add the positions of one conversation to ``counts``, by class of match length. Only positions between two tokens of an answer count
    (``written``). Returns their number."""
    index, looked = Index(), 0
    for place, root in enumerate(tokens[:-1]):
        if written[place] and written[place + 1]:
            looked += 1
            matched, earlier = index.find(root)
            coming = tokens[place + 1 : place + 1 + GUESSES]
            if matched:
                guesses = index.after(earlier, root, len(coming))
                accepted = next((at for at, (ours, theirs) in enumerate(zip(guesses, coming, strict=True)) if ours != theirs), len(coming))
                counts[max(least for least in MATCHED if least <= matched)].see(accepted, len(coming))
        index.extend([root])
    return looked


def of_shards(directory: Path) -> Iterator[tuple[list[int], list[bool]]]:
    """(tokens, whether each belongs to an answer) of every conversation."""
    from safetensors import safe_open

    from export.training.words import ANSWER

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise PromptError(f"{directory} holds no shards — make some: resps-train words --out {directory}")
    for file in files:
        with safe_open(file, "np") as shard:
            tokens, kinds, starts = (shard.get_tensor(name) for name in ("tokens", "kinds", "starts"))
        for start, stop in pairwise(starts.tolist()):
            yield tokens[start:stop].tolist(), (kinds[start:stop] == ANSWER).tolist()


def of_answers(file: Path, engine_dir: Path) -> Iterator[tuple[list[int], list[bool]]]:
    """The same for lines with a prompt and its answer, with the chat template and tokenizer of that engine."""
    directory = find_engine_dir(engine_dir)
    text = Text(directory, load_manifest(directory, verify=False).tokens)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            each = json.loads(line)
            prompt, answer = text.encode([{"role": "user", "content": each["prompt"]}]), text.encode_raw(each["answer"])
        except (ValueError, KeyError, TypeError) as problem:
            raise PromptError(f"{file} line {number} has no prompt and answer: {problem!r} — see --help") from None
        yield [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), help="Whose tokenizer reads FILE.jsonl.")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def main(engine_dir: Path | None, source: Path) -> None:
    """Count in SOURCE, a directory of shards or a file of answers."""
    if source.is_file() and engine_dir is None:
        raise click.UsageError(f"{source} is text: --engine-dir says how it is cut into tokens")
    conversations = of_answers(source, engine_dir) if source.is_file() and engine_dir else of_shards(source)
    counts = {least: Count() for least in MATCHED}
    looked = sum(count(tokens, written, counts) for tokens, written in conversations)
    click.echo(
        f"{looked:,} places\n\n| tokens in common | share of places | the next one is right | each further one | of eight, accepted |"
    )
    click.echo("| --- | --- | --- | --- | --- |")
    for (least, each), above in zip(counts.items(), [*MATCHED[1:], None], strict=True):
        name = f"{least} and more" if above is None else f"{least} to {above - 1}".removesuffix(f" to {least}")
        accepted = each.accepted / max(1, each.places)
        click.echo(f"| {name} | {100 * each.places / max(1, looked):.0f} % | {each.first:.2f} | {each.following:.2f} | {accepted:.1f} |")


if __name__ == "__main__":
    sys.exit(run_command(main, "count_repeats"))
