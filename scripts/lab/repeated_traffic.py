"""Speed of lookup over past answers, over lookup within each request, on traffic that repeats itself and on traffic that does not.

    python -m scripts.lab.repeated_traffic --engine-dir DIR --prompts FOLDER [--kind documents]

FOLDER has question sets, such as cnn_dm.jsonl, humaneval.jsonl and gsm8k.jsonl. Two Decoders, one that keeps past answers and one that
keeps none, answer the same requests in turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import click

from runtime import Decoder, SamplingParams
from runtime.drafters.registry import PAST_MIB
from scripts.options import engine_dir

Chat = list[dict[str, str]]
Ask = Callable[[Chat], str]
"""Sends a request with both Decoders. Returns the answer."""
TOOLS = (
    "You solve tasks step by step. Tools: search(text) finds a document, calculate(expression) computes. Answer each turn with one line "
    'Thought: and one line Action:, for example Action: search("rivers"). When you know the answer, write Final: and the answer.'
)


def _questions(folder: Path, name: str, count: int) -> list[str]:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["turns"][0] for line in lines]


def _user(text: str) -> Chat:
    return [{"role": "user", "content": text}]


def documents(folder: Path, count: int, ask: Ask) -> None:
    """The same documents again: each is summarized for two users, and in other words for two more."""
    texts = [text.removeprefix("Summarize: ") for text in _questions(folder, "cnn_dm", count)]
    for form in ("Summarize: {}", "Summarize in two sentences: {}", "Summarize: {}", "{}\n\nSummarize this text."):
        for text in texts:
            ask(_user(form.format(text)))


def code(folder: Path, count: int, ask: Ask) -> None:
    """Code edited in small steps: another name, a line less, a line more; each time the rest is asked for."""
    for text in _questions(folder, "humaneval", count):
        name = (re.search(r"def (\w+)", text) or ["", "solve"])[1]
        lines = text.rstrip("\n").split("\n")
        for edited in (text, text.replace(name, f"{name}_new"), "\n".join([*lines[:-2], lines[-1]]) + "\n", f"{text}    # step 1\n"):
            ask(_user(edited))


def agents(folder: Path, count: int, ask: Ask) -> None:
    """Agent loops with tool results: three turns, then the same task again, as after a retry."""
    results = [text.removeprefix("Summarize: ")[:400] for text in _questions(folder, "cnn_dm", count)]
    for _ in range(2):
        for task, result in zip(_questions(folder, "gsm8k", count), results, strict=True):
            chat = [{"role": "system", "content": TOOLS}, *_user(task)]
            for step in (f"Result: {result}", "Result: nothing was found", ""):
                chat = [*chat, {"role": "assistant", "content": ask(chat)}, *_user(step)]


def unrepeated(folder: Path, count: int, ask: Ask) -> None:
    """Every question once."""
    for file in sorted(folder.glob("*.jsonl")):
        for text in _questions(folder, file.stem, count):
            ask(_user(text))


KINDS = {each.__name__: each for each in (documents, code, agents, unrepeated)}


class Comparison:
    """Both Decoders, the one without past answers first, and what they took so far."""

    def __init__(self, decoders: tuple[Decoder, Decoder], new_tokens: int, temperature: float) -> None:
        self._decoders, self._new_tokens, self._temperature = decoders, new_tokens, temperature
        self._seconds, self._cycles = [0.0, 0.0], [0, 0]
        self._requests = self._tokens = self._different = 0

    def ask(self, chat: Chat) -> str:
        """An `Ask`."""
        params = SamplingParams(max_new_tokens=self._new_tokens, temperature=self._temperature, seed=self._requests)
        answers = {}
        for side in (0, 1) if self._requests % 2 else (1, 0):
            answers[side] = self._decoders[side].generate(chat, params)
            self._seconds[side] += answers[side].stats.decode_seconds
            self._cycles[side] += answers[side].stats.cycles
        one, other = answers[0].tokens, answers[1].tokens
        self._requests += 1
        self._tokens += len(one)
        self._different += sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
        return answers[1].text

    def __str__(self) -> str:
        decoded = self._tokens - self._requests
        within, past = (decoded / each for each in self._seconds)
        cycles = " and ".join(f"{decoded / each:.2f}" for each in self._cycles)
        return (
            f"{self._requests} requests, {within:.1f} and {past:.1f} tokens/s ({past / within:.2f}x), {cycles} tokens per cycle; "
            f"{self._different} of {self._tokens} tokens differ"
        )


@click.command(context_settings={"show_default": True})
@engine_dir
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, default=list(KINDS))
@click.option("--count", type=int, default=4, help="Documents, programs, tasks, or questions of each set.")
@click.option("--new-tokens", type=int, default=96)
@click.option("--temperature", type=float, default=0.0)
@click.option("--threads", type=int, default=2)
def main(engine_dir: Path, prompts: Path, kinds: tuple[str, ...], count: int, new_tokens: int, temperature: float, threads: int) -> None:
    """Print what both take for each kind of traffic, and how many tokens differ."""
    with Decoder(engine_dir, threads=threads) as within, Decoder(engine_dir, threads=threads, past_mib=PAST_MIB) as past:
        for each in (within, past):
            each.warmup()
        for kind in kinds:
            past.forget()
            compared = Comparison((within, past), new_tokens, temperature)
            KINDS[kind](prompts, count, compared.ask)
            click.echo(f"{kind}: {compared}")


if __name__ == "__main__":
    main()
