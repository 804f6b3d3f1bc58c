"""Trees of a draft against plain decoding, on question sets: tokens per cycle, acceptance per depth, speed, and where a cycle's time goes.

    python -m scripts.bench_draft --engine-dir DIR --tree 6,3,3 --tree 16,5,4 QUESTIONS.jsonl ...

The arms take turns question by question in one process on the same engine. A question file has one JSON object a line with ``turns``, user
messages asked one after the other in one chat; answers are greedy, and every arm's is compared with plain decoding's.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder
from runtime.engine_ort import OrtCall


@dataclass
class Tally:
    """What one arm did on one question set."""

    tokens: int = 0
    cycles: int = 0
    seconds: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    differing: int = 0
    reached: list[int] = field(default_factory=list)  # rounds that accepted at least i + 1 draft tokens
    rates: list[float] = field(default_factory=list)  # tokens/s of each answer over plain decoding's of the same question
    inside: Counter[str] = field(default_factory=Counter)  # seconds inside each graph, prefill apart

    def depths(self) -> list[float]:
        """Of the rounds that accepted i tokens, the share that accepted one more."""
        before = [self.cycles, *self.reached]
        return [here / above for above, here in zip(before, self.reached, strict=False) if above]


def answers(decoder: Decoder, turns: list[str], spec: TreeSpec, tokens: int, tally: Tally, spent: Counter[str]) -> list[tuple[int, ...]]:
    """Ask the turns in one chat, greedily; returns each answer's tokens. ``spent``: running seconds inside each graph."""
    chat: list[dict[str, str]] = []
    given = []
    for turn in turns:
        chat.append({"role": "user", "content": turn})
        with decoder.stream(chat, max_new_tokens=tokens, policy=FixedPolicy(spec)) as stream:
            for chunk in stream:
                if chunk.spec is None and chunk.tokens:  # prefill is over
                    spent.clear()
                if chunk.spec is not None and chunk.tokens:
                    for level in range(chunk.accepted):
                        tally.reached.extend([0] * (level + 1 - len(tally.reached)))
                        tally.reached[level] += 1
            result = stream.result()
        tally.inside += spent
        stats = result.stats
        tally.tokens += stats.new_tokens - 1  # the first one is prefill's
        tally.cycles += stats.cycles
        tally.seconds += stats.decode_seconds
        tally.draft += stats.draft_seconds
        tally.verify += stats.verify_seconds
        given.append(result.tokens)
        chat.append({"role": "assistant", "content": result.text})
    return given


def engine_times(decoder: Decoder) -> Counter[str]:
    """Seconds inside each graph from now on, by patching the one method that runs them."""
    engines: Any = getattr(decoder._drafter, "_engines", None)
    target: Any = decoder._target
    names = {id(target._engine._session): "target"}
    if engines is not None:
        names |= {id(getattr(engines, name)._session): name for name in ("fuse", "draft", "expand", "tree")}
    spent: Counter[str] = Counter()
    original = OrtCall.run

    def run(call: OrtCall) -> None:
        started = perf_counter()
        original(call)
        spent[names.get(id(call._session), "other")] += perf_counter() - started

    OrtCall.run = run  # type: ignore[method-assign,assignment]
    return spent


def questions(file: Path, count: int) -> Iterator[list[str]]:
    """The turns of the first ``count`` questions."""
    for line in file.read_text(encoding="utf-8").splitlines()[:count]:
        yield json.loads(line)["turns"]


def measure(decoder: Decoder, file: Path, specs: list[TreeSpec], count: int, tokens: int, spent: Counter[str]) -> dict[TreeSpec, Tally]:
    """All arms over one question set."""
    tallies = {spec: Tally() for spec in specs}
    for number, turns in enumerate(questions(file, count)):
        given, rate = {}, {}
        for arm in range(len(specs)):
            spec = specs[(number + arm) % len(specs)]
            tally = tallies[spec]
            seconds, made = tally.seconds, tally.tokens
            given[spec] = answers(decoder, turns, spec, tokens, tally, spent)
            rate[spec] = (tally.tokens - made) / max(1e-9, tally.seconds - seconds)
        for spec in specs:
            tallies[spec].rates.append(rate[spec] / rate[PLAIN] if rate[PLAIN] else 1.0)
            tallies[spec].differing += sum(mine != plain for mine, plain in zip(given[spec], given[PLAIN], strict=True))
    return tallies


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path), required=True)
@click.option("--tree", "trees", multiple=True, default=("6,3,3", "16,5,4"), show_default=True, help="NODES,DEPTH,WIDTH; may be repeated.")
@click.option("--draft", default=None, help="Drafter [default: the directory's].")
@click.option("--questions", "count", default=12, show_default=True, help="Of each set.")
@click.option("--max-new-tokens", default=128, show_default=True)
@click.option("--threads", default=None, type=int)
@click.option("--json", "as_json", is_flag=True)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(
    engine_dir: Path, trees: tuple[str, ...], draft: str | None, count: int, max_new_tokens: int, threads: int | None, as_json: bool,
    files: tuple[Path, ...],
) -> None:  # fmt: skip
    """Compare trees with plain decoding."""
    specs = [PLAIN, *map(TreeSpec.parse, trees)]
    results: dict[str, dict[TreeSpec, Tally]] = {}
    with Decoder(engine_dir, draft=draft, threads=threads) as decoder:
        decoder.generate("Warm up, please.", max_new_tokens=8)
        spent = engine_times(decoder)
        for file in files:
            results[file.stem] = measure(decoder, file, specs, count, max_new_tokens, spent)
            click.echo(f"{file.stem}: done", err=True)
    if as_json:
        click.echo(json.dumps(report(results)))
        return
    click.echo("\n".join(tables(results)))


def report(results: dict[str, dict[TreeSpec, Tally]]) -> dict[str, Any]:
    """The figures by set and tree."""
    return {
        name: {
            str(spec): {
                "tokens_per_cycle": tally.tokens / max(1, tally.cycles),
                "ratio": statistics.median(tally.rates),
                "tokens_per_second": tally.tokens / max(1e-9, tally.seconds),
                "per_depth": tally.depths(),
                "differing": tally.differing,
            }
            for spec, tally in by_spec.items()
        }
        for name, by_spec in results.items()
    }


def tables(results: dict[str, dict[TreeSpec, Tally]]) -> Iterator[str]:
    """Markdown."""
    for spec in next(iter(results.values())):
        if spec == PLAIN:
            continue
        yield f"\n{spec}: set | tokens/cycle | over plain (median) | tokens/s | acceptance at depth 1, 2, ... | answers that differ"
        yield "--- | --- | --- | --- | --- | ---"
        for name, by_spec in results.items():
            tally = by_spec[spec]
            rates = " ".join(f"{rate:.2f}" for rate in tally.depths())
            yield (
                f"{name} | {tally.tokens / max(1, tally.cycles):.2f} | {statistics.median(tally.rates):.2f} | "
                f"{tally.tokens / max(1e-9, tally.seconds):.1f} | {rates} | {tally.differing}"
            )
        every = [by_spec[spec] for by_spec in results.values()]
        cycles = sum(tally.cycles for tally in every)
        length = statistics.mean(tally.tokens / max(1, tally.cycles) for tally in every)
        ratio = statistics.mean(statistics.median(tally.rates) for tally in every)
        yield f"mean | {length:.2f} | {ratio:.2f}"
        whole, verify = sum(tally.seconds for tally in every), sum(tally.verify for tally in every)
        draft = sum(tally.draft for tally in every)
        inside = sum((tally.inside for tally in every), Counter())
        growth = inside["expand"] + inside["tree"]
        host = whole - inside["target"] - inside["fuse"] - inside["draft"] - growth
        parts = {"fuse + draft": inside["fuse"] + inside["draft"], "expand + tree": growth, "target": inside["target"], "host": host}
        split = ", ".join(f"{name} {1e3 * value / cycles:.2f} ms ({value / whole:.1%})" for name, value in parts.items())
        phases = f"drafting phase {1e3 * draft / cycles:.2f}, verifying {1e3 * verify / cycles:.2f}"
        yield f"cycle {1e3 * whole / cycles:.2f} ms: {split}; {phases}"
    plain = [by_spec[PLAIN] for by_spec in results.values()]
    yield f"\nplain: {sum(t.tokens for t in plain) / sum(t.seconds for t in plain):.1f} tokens/s"


if __name__ == "__main__":
    main()
