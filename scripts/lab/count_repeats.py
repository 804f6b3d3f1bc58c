"""How often does text repeat itself, and how many tokens would a lookup (runtime/drafters/suffix.py) have got right at every position?

    python -m scripts.lab.count_repeats data                                          # shards of resps-train
    python -m scripts.lab.count_repeats --engine-dir DIR FILE.jsonl                   # lines with `prompt` and `answer`

Prints the table of docs/lab/lookup.md, "How often text repeats itself", and the rates that policy/lookup.py starts a request with: how
often the first token of a lookup is right, and each further one after a right one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from policy.lookup import MATCH_CLASSES
from runtime.console import run_command
from runtime.drafters.suffix import SuffixIndex
from runtime.errors import PromptError
from runtime.manifest.load import find_engine_dir, load_manifest
from runtime.text.tokenizer import Tokenizer

GUESSES = 8  # tokens of a lookup


@dataclass
class LookupCount:
    """Counts over the positions whose match has a length of one class.

    first_right: positions where the lookup's first token was right. accepted: right tokens before the first wrong one, summed up.
    later_tries: further tokens that were compared, each after a right one.
    """

    positions: int = 0
    first_right: int = 0
    accepted: int = 0
    later_tries: int = 0

    def add(self, accepted: int, guessed: int) -> None:
        self.positions += 1
        self.first_right += accepted > 0
        self.accepted += accepted
        if accepted:
            self.later_tries += min(accepted, guessed - 1)

    @property
    def first_rate(self) -> float:
        return self.first_right / self.positions if self.positions else 0.0

    @property
    def later_rate(self) -> float:
        return (self.accepted - self.first_right) / self.later_tries if self.later_tries else 0.0


def count(tokens: Sequence[int], written: Sequence[bool], counts: dict[int, LookupCount]) -> int:
    """Add the positions of one conversation to ``counts``, by class of match length. Only positions between two tokens of an answer count
    (``written``). Returns their number."""
    index, positions = SuffixIndex(), 0
    for position, root in enumerate(tokens[:-1]):
        if written[position] and written[position + 1]:
            positions += 1
            matched, earlier = index.find(root)
            following = tokens[position + 1 : position + 1 + GUESSES]
            if matched:
                guesses = index.continuation(earlier, root, len(following))
                wrong = (step for step, (guess, token) in enumerate(zip(guesses, following, strict=True)) if guess != token)
                accepted = next(wrong, len(following))
                counts[max(least for least in MATCH_CLASSES if least <= matched)].add(accepted, len(following))
        index.extend([root])
    return positions


def of_shards(directory: Path) -> Iterator[tuple[list[int], list[bool]]]:
    """(tokens, whether each belongs to an answer) of every conversation."""
    from export.training.words.corpus import read_shard
    from export.training.words.segments import ANSWER

    files = sorted(directory.glob("*.npz"))
    if not files:
        raise PromptError(f"{directory} holds no shards — make some: resps-train words --out {directory}")
    for each in (each for file in files for each in read_shard(file)):
        yield each.tokens.tolist(), (each.kinds == ANSWER).tolist()


def of_answers(file: Path, engine_dir: Path) -> Iterator[tuple[list[int], list[bool]]]:
    """The same for lines with a prompt and its answer, with the chat template and tokenizer of that engine."""
    directory = find_engine_dir(engine_dir)
    text = Tokenizer(directory, load_manifest(directory, verify=False).tokens)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            prompt, answer = text.encode([{"role": "user", "content": entry["prompt"]}]), text.encode_raw(entry["answer"])
        except (ValueError, KeyError, TypeError) as problem:
            raise PromptError(f"{file} line {number} has no prompt and answer: {problem!r} — see --help") from None
        yield [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), help="Whose tokenizer reads FILE.jsonl.")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def main(engine_dir: Path | None, source: Path) -> None:
    """Count repeats in SOURCE, a directory of shards or a file of answers."""
    if source.is_file() and engine_dir is None:
        raise click.UsageError(f"{source} is text: --engine-dir says how it is cut into tokens")
    conversations = of_answers(source, engine_dir) if source.is_file() and engine_dir else of_shards(source)
    counts = {least: LookupCount() for least in MATCH_CLASSES}
    positions = sum(count(tokens, written, counts) for tokens, written in conversations)
    click.echo(
        f"{positions:,} places\n\n| tokens in common | share of places | the next one is right | each further one | of eight, accepted |"
    )
    click.echo("| --- | --- | --- | --- | --- |")
    for (least, result), above in zip(counts.items(), [*MATCH_CLASSES[1:], None], strict=True):
        name = f"{least} and more" if above is None else f"{least} to {above - 1}".removesuffix(f" to {least}")
        share, accepted = 100 * result.positions / max(1, positions), result.accepted / max(1, result.positions)
        click.echo(f"| {name} | {share:.0f} % | {result.first_rate:.2f} | {result.later_rate:.2f} | {accepted:.1f} |")


if __name__ == "__main__":
    sys.exit(run_command(main, "count_repeats"))
