"""Speed of lookup over past answers, over lookup within each request, on traffic that repeats itself and on traffic that does not.

    python -m scripts.lab.repeated_traffic --engine-dir DIR --prompts FOLDER [--kind documents] [--lanes 8]

FOLDER has question sets, such as cnn_dm.jsonl, humaneval.jsonl and gsm8k.jsonl. Two Decoders, one that keeps past answers and one that
keeps none, answer the same requests in turns. With several lanes each has as many clients, with questions of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import click

from runtime import Decoder, Result, SamplingParams
from runtime.drafters.registry import PAST_MIB
from scripts.options import engine_dir

Chat = list[dict[str, str]]
Ask = Callable[[Chat], str]
"""Sends a request. Returns the answer."""
TOOLS = (
    "You solve tasks step by step. Tools: search(text) finds a document, calculate(expression) computes. Answer each turn with one line "
    'Thought: and one line Action:, for example Action: search("rivers"). When you know the answer, write Final: and the answer.'
)


@dataclass(frozen=True)
class Share:
    """The questions of one client: ``count`` of each set in ``folder``."""

    folder: Path
    client: int
    count: int

    def of(self, name: str) -> list[str]:
        """Of one set."""
        lines = (self.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["turns"][0] for line in lines[self.client * self.count :][: self.count]]


def _user(text: str) -> Chat:
    return [{"role": "user", "content": text}]


def documents(share: Share, ask: Ask) -> None:
    """The same documents again: each is summarized for two users, and in other words for two more."""
    texts = [text.removeprefix("Summarize: ") for text in share.of("cnn_dm")]
    for form in ("Summarize: {}", "Summarize in two sentences: {}", "Summarize: {}", "{}\n\nSummarize this text."):
        for text in texts:
            ask(_user(form.format(text)))


def code(share: Share, ask: Ask) -> None:
    """Code edited in small steps: another name, a line less, a line more; each time the rest is asked for."""
    for text in share.of("humaneval"):
        name = (re.search(r"def (\w+)", text) or ["", "solve"])[1]
        lines = text.rstrip("\n").split("\n")
        for edited in (text, text.replace(name, f"{name}_new"), "\n".join([*lines[:-2], lines[-1]]) + "\n", f"{text}    # step 1\n"):
            ask(_user(edited))


def agents(share: Share, ask: Ask) -> None:
    """Agent loops with tool results: three turns, then the same task again, as after a retry."""
    results = [text.removeprefix("Summarize: ")[:400] for text in share.of("cnn_dm")]
    for _ in range(2):
        for task, result in zip(share.of("gsm8k"), results, strict=True):
            chat = [{"role": "system", "content": TOOLS}, *_user(task)]
            for step in (f"Result: {result}", "Result: nothing was found", ""):
                chat = [*chat, {"role": "assistant", "content": ask(chat)}, *_user(step)]


def unrepeated(share: Share, ask: Ask) -> None:
    """Every question once."""
    for file in sorted(share.folder.glob("*.jsonl")):
        for text in share.of(file.stem):
            ask(_user(text))


KINDS = {each.__name__: each for each in (documents, code, agents, unrepeated)}


@dataclass(frozen=True)
class Pass:
    """All traffic of a kind through one Decoder: the answers of each client, and seconds in all."""

    answers: list[list[Result]]
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second: of decoding with one client, of everything with several."""
        alone = len(self.answers) == 1
        tokens = sum(len(each.tokens) - alone for client in self.answers for each in client)
        return tokens / (sum(each.stats.decode_seconds for each in self.answers[0]) if alone else self.seconds)

    @property
    def per_cycle(self) -> float:
        """Tokens per cycle."""
        answers = [each for client in self.answers for each in client]
        return sum(len(each.tokens) - 1 for each in answers) / sum(each.stats.cycles for each in answers)


def send(decoder: Decoder, kind: str, shares: list[Share], params: SamplingParams) -> Pass:
    """Every client its traffic, all at the same time."""
    decoder.forget()

    def client(share: Share) -> list[Result]:
        answers: list[Result] = []

        def ask(chat: Chat) -> str:
            answers.append(decoder.generate(chat, replace(params, seed=1000 * share.client + len(answers))))
            return answers[-1].text

        KINDS[kind](share, ask)
        return answers

    started = perf_counter()
    with ThreadPoolExecutor(len(shares)) as pool:
        answers = list(pool.map(client, shares))
    return Pass(answers, perf_counter() - started)


def compared(turns: list[tuple[Pass, Pass]]) -> str:
    """What both took, without and with past answers; medians over turns."""
    ratios = sorted(past.rate / within.rate for within, past in turns)
    within, past = turns[0]
    pairs = [
        (one.tokens, other.tokens)
        for sides in turns
        for clients in zip(*(each.answers for each in sides), strict=True)
        for one, other in zip(*clients, strict=True)
    ]
    different = sum(sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other)) for one, other in pairs)
    rates = [median(each.rate for each in side) for side in zip(*turns, strict=True)]
    return (
        f"{sum(map(len, within.answers))} requests, {rates[0]:.1f} and {rates[1]:.1f} tokens/s, {median(ratios):.2f}x "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(turns)} turns), {within.per_cycle:.2f} and {past.per_cycle:.2f} tokens per cycle; "
        f"{different} of {sum(len(one) for one, _ in pairs)} tokens differ"
    )


@click.command(context_settings={"show_default": True})
@engine_dir
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, default=list(KINDS))
@click.option("--count", type=int, default=4, help="Documents, programs, tasks, or questions of each set, for each client.")
@click.option("--new-tokens", type=int, default=96)
@click.option("--temperature", type=float, default=0.0)
@click.option("--lanes", type=click.IntRange(min=1), default=1, help="Also the number of clients.")
@click.option("--turns", type=click.IntRange(min=1), default=2)
@click.option("--threads", type=int, default=2)
def main(
    engine_dir: Path,
    prompts: Path,
    kinds: tuple[str, ...],
    count: int,
    new_tokens: int,
    temperature: float,
    lanes: int,
    turns: int,
    threads: int,
) -> None:
    """Print what both take for each kind of traffic, and how many tokens differ."""
    shares = [Share(prompts, client, count) for client in range(lanes)]
    params = SamplingParams(max_new_tokens=new_tokens, temperature=temperature)
    with (
        Decoder(engine_dir, threads=threads, lanes=lanes) as within,
        Decoder(engine_dir, threads=threads, lanes=lanes, past_mib=PAST_MIB) as past,
    ):
        for each in (within, past):
            each.warmup()
        for kind in kinds:
            found = []
            for turn in range(turns):
                order = (within, past) if turn % 2 == 0 else (past, within)
                sides = {each: send(each, kind, shares, params) for each in order}
                found.append((sides[within], sides[past]))
            click.echo(f"{kind}: {compared(found)}")


if __name__ == "__main__":
    main()
