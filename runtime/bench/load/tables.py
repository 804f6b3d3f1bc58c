"""The figures of a run with several clients as tables of text."""

from __future__ import annotations

from collections.abc import Iterator

from ..tables import TextTable, number, origin, percentile_texts
from .figures import LoadTable
from .record import LoadMeasurement


def tables(table: LoadTable) -> list[TextTable]:
    """Throughput first, then latency, then what explains them."""
    return [throughput(table), latency(table), _passes(table)]


def headlines(measurement: LoadMeasurement, table: LoadTable) -> Iterator[str]:
    """The verdicts, then what was measured, how and where."""
    yield from verdicts(measurement, table)
    settings = measurement.settings
    how = f"temperature {settings.temperature:g}, seed {settings.seed}" if settings.temperature else "greedy"
    sets = len({answer.set for answer in measurement.plain})
    short = f", prompts of at most {settings.max_prompt_tokens} tokens" if settings.max_prompt_tokens is not None else ""
    asked = f"{len(measurement.plain)} questions of {sets} sets{short}"
    yield f"{asked}, {settings.turns} turns, {how}, {settings.max_new_tokens} new tokens"
    yield "; ".join(f"{each.name}: threads {each.threads}, draft {each.draft}" for each in measurement.contenders)
    yield from origin(measurement.engine, measurement.machine, measurement.date)


def verdicts(measurement: LoadMeasurement, table: LoadTable) -> Iterator[str]:
    """Whether all tokens equal plain decoding's; then questions that were left out, an early end."""
    for cell in table.cells:
        if cell.differing_answers:
            yield (
                f"NOT LOSSLESS: {cell.contender} with {cell.arrivals.name} gives other answers than plain decoding: "
                f"{cell.differing_answers} of {cell.answers} answers, {cell.differing_tokens} tokens differ"
            )
    if not any(cell.differing_answers for cell in table.cells):
        yield f"lossless: 0 of {sum(cell.tokens for cell in table.cells)} tokens differ from plain decoding's"
    for skipped in measurement.skipped:
        yield f"LEFT OUT: {skipped.set}, question {skipped.question}: {skipped.reason}"
    if measurement.dropped:
        yield f"{measurement.dropped} prompts were dropped: longer than --max-prompt-tokens, or asked already"
    if measurement.interrupted:
        yield "INTERRUPTED: these are the turns that were finished"


def throughput(table: LoadTable) -> TextTable:
    """Rates, ratios, and how many answers differ."""
    header = (
        "arrivals",
        "served by",
        "tokens/s",
        "lowest",
        "highest",
        f"over {table.contenders[0]}",
        "requests/s",
        "prompt tokens/s",
        "differ",
    )
    rows = []
    for cell in table.cells:
        rates = (number(each, 1) for each in (cell.tokens_per_second, cell.lowest, cell.highest))
        ratio = "-" if cell.ratio is None else f"{cell.ratio:.2f}x"
        others = (number(cell.requests_per_second), number(cell.prompt_tokens_per_second, 0))
        rows.append((cell.arrivals.name, cell.contender, *rates, ratio, *others, f"{cell.differing_answers}/{cell.answers}"))
    note = (
        "medians over turns; tokens/s: new tokens over the seconds from first arrival to last token; over ...: median of the ratios "
        "in the same turn; prompt tokens/s: those that were computed; differ: answers with a token other than plain decoding's"
    )
    return TextTable("Throughput", note, header, tuple(rows), texts=2)


def latency(table: LoadTable) -> TextTable:
    """Time to the first token, and between tokens."""
    rows = []
    for cell in table.cells:
        first, inter = percentile_texts(cell.first_token), percentile_texts(cell.inter_token)
        rows.append((cell.arrivals.name, cell.contender, *first, *inter))
    note = (
        "milliseconds, medians over turns; first token: from the arrival of the request, waiting for a place included; inter-token: each "
        "token's share of the wait between two deliveries of an answer"
    )
    return TextTable("Latency", note, ("arrivals", "served by", "first token p50", "p99", "inter-token p50", "p99"), tuple(rows), texts=2)


def _passes(table: LoadTable) -> TextTable:
    rows = [
        (cell.arrivals.name, cell.contender, number(cell.tokens_per_cycle), number(cell.rows_per_pass), f"{100 * cell.cached:.0f} %")
        for cell in table.cells
    ]
    note = "medians over turns; a pass may serve a cycle of several requests; cached: share of the prompt tokens that were not computed"
    return TextTable("Cycles and passes", note, ("arrivals", "served by", "tokens/cycle", "rows/pass", "cached"), tuple(rows), texts=2)
