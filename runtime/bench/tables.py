"""The figures as tables of text, for Markdown on the terminal and for the HTML report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .figures import Cell, Mean, Percentiles, Table
from .ratio import Ratio, Spread
from .record import BASELINE, ContenderRecord, EngineRecord, Machine, Measurement

MAX_TREES = 6  # listed by name, the rest as "others"


@dataclass(frozen=True)
class TextTable:
    """``note`` explains the columns. The first ``texts`` columns are text, the others are figures."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int


def tables(measurement: Measurement, table: Table) -> list[TextTable]:
    """All tables of a run; the first has the two figures that papers report."""
    labels = {contender.name: label(contender) for contender in measurement.contenders}
    return [
        _overview(measurement.sets, table, labels),
        _speed(table, labels),
        _latency(table, labels),
        _cycles(table, labels),
        _trees(table, labels),
    ]


def label(contender: ContenderRecord) -> str:
    """The contender's name, with its fixed tree unless the name ends with it."""
    name, tree = contender.name, contender.tree
    return name if tree is None or name == BASELINE or name.endswith(tree) else f"{name} ({tree})"


def headlines(measurement: Measurement, table: Table) -> Iterator[str]:
    """The verdicts, then what was measured, how and where."""
    yield from verdicts(measurement, table)
    settings = measurement.settings
    how = f"temperature {settings.temperature:g}, seed {settings.seed}" if settings.temperature else "greedy"
    turns = len(measurement.answers) // len(measurement.contenders)
    yield f"{turns} turns of {len(measurement.sets)} sets, {how}, {settings.max_new_tokens} new tokens, {settings.threads} threads"
    yield from origin(measurement.engine, measurement.machine, measurement.date)


def origin(engine: EngineRecord, machine: Machine, date: str) -> Iterator[str]:
    """Which engine, machine and versions a run is of."""
    drafts = f"draft {' and '.join(engine.drafts)}" + (f" ({engine.draft_name}, {engine.draft_precision})" if engine.draft_name else "")
    yield f"engine {engine.model} {engine.precision}, {drafts}, {engine.backend} on {engine.device}, id {engine.id}"
    peak = f", {machine.peak_memory >> 20} MiB peak memory with all contenders in one process" if machine.peak_memory else ""
    yield f"{machine.processor}, {machine.cores} cores, {machine.system}, {date}{peak}"
    yield ", ".join(f"{name} {version}" for name, version in machine.versions.items())


def verdicts(measurement: Measurement, table: Table) -> Iterator[str]:
    """Whether all tokens equal the baseline's; then policies that were given up, turns that were left out, an early end."""
    compared = [cell for cell in table.pooled if cell.contender != BASELINE]
    tokens = sum(len(answer.tokens) for answer in measurement.answers if answer.contender != BASELINE)
    for cell in compared:
        if cell.differing_answers:
            yield (
                f"NOT LOSSLESS: {cell.contender} gives other answers than {BASELINE}: {cell.differing_answers} of {cell.answers} answers, "
                f"{cell.differing_tokens} tokens differ"
            )
    if compared and not any(cell.differing_answers for cell in compared):
        yield f"lossless: 0 of {tokens} tokens differ from {BASELINE}'s"
    for contender in measurement.contenders:
        if contender.given_up:
            yield f"GIVEN UP: the watchdog of {contender.name} fell back to its fixed tree: {contender.given_up}"
    for skipped in measurement.skipped:
        yield f"LEFT OUT: {skipped.set}, question {skipped.question}, from turn {skipped.turn} on: {skipped.reason}"
    if measurement.interrupted:
        yield "INTERRUPTED: these are the questions that all contenders had answered"


def markdown(table: TextTable) -> Iterator[str]:
    """The lines of a Markdown table with aligned columns."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    figures = [column >= table.texts for column in range(len(widths))]

    def row(cells: Sequence[str]) -> str:
        padded = (cell.rjust(width) if figure else cell.ljust(width) for cell, width, figure in zip(cells, widths, figures, strict=True))
        return f"| {' | '.join(padded)} |"

    yield f"## {table.title}"
    yield from ("", table.note, "")
    yield row(table.header)
    yield "|" + "|".join("-" * (width + 1) + ("-:"[figure]) for width, figure in zip(widths, figures, strict=True)) + "|"
    yield from map(row, table.rows)


def _overview(sets: Sequence[str], table: Table, labels: Mapping[str, str]) -> TextTable:
    cells = {(cell.set, cell.contender): cell for cell in table.cells}

    def short(ratio: Spread | None, length: float | None) -> str:
        return f"{_times(ratio)} {number(length)}"

    rows = []
    for mean in table.means:
        row = [cells[name, mean.contender] for name in sets]
        figures = [short(cell.ratio.median if cell.ratio else None, cell.tokens_per_cycle) for cell in row]
        rows.append((labels[mean.contender], *figures, *([short(mean.median, mean.tokens_per_cycle)] if len(sets) > 1 else [])))
    header = ("contender", *sets, *(["mean"] if len(sets) > 1 else []))
    note = f"tokens/s over {BASELINE} (median over questions), then tokens per cycle; mean: every set has the same weight"
    return TextTable("Speed and tokens per cycle", note, header, tuple(rows), texts=1)


def _speed(table: Table, labels: Mapping[str, str]) -> TextTable:
    header = ("set", "contender", "tokens/s", "median", "95 %", "quartiles", "of sums", "95 %", "tokens/cycle", "acceptance", "differ")
    rows = [_speed_row(cell, labels) for cell in table.cells]
    rows += [_mean_row(mean, labels) for mean in table.means] if len({cell.set for cell in table.cells}) > 1 else []
    note = (
        f"median: of the questions' ratios to {BASELINE}; of sums: ratio of the total rates, each all tokens over all seconds; 95 %: "
        "bootstrap over questions; acceptance at depth 1, 2, ...: of the rounds that accepted all tokens above, the share that accepted "
        f"this one; differ: answers with a token other than {BASELINE}'s"
    )
    return TextTable("Speed", note, header, tuple(rows), texts=2)


def _speed_row(cell: Cell, labels: Mapping[str, str]) -> tuple[str, ...]:
    figures = _ratio(cell.ratio)
    depths = " ".join(f"{share:.2f}".removeprefix("0") for share in cell.acceptance) or "-"
    wrong = f"{cell.differing_answers}/{cell.answers}"
    return (
        cell.set or "all",
        labels[cell.contender],
        number(cell.tokens_per_second, 1),
        *figures,
        number(cell.tokens_per_cycle),
        depths,
        wrong,
    )


def _mean_row(mean: Mean, labels: Mapping[str, str]) -> tuple[str, ...]:
    median, sums = (_times(mean.median), _interval(mean.median)), (_times(mean.sums), _interval(mean.sums))
    return ("mean", labels[mean.contender], number(mean.tokens_per_second, 1), *median, "", *sums, number(mean.tokens_per_cycle), "", "")


def _latency(table: Table, labels: Mapping[str, str]) -> TextTable:
    header = ("set", "contender", "first token p50", "p99", "delivery p50", "p99", "per token p50", "p99", "prefill tokens/s")
    rows = []
    for cell in (*table.cells, *table.pooled):
        spans = (percentile_texts(each) for each in (cell.first_token, cell.delivery, cell.token))
        rows.append(
            (cell.set or "all", labels[cell.contender], *(text for pair in spans for text in pair), f"{cell.prefill_tokens_per_second:.0f}")
        )
    note = (
        "milliseconds; first token: from the call, prefill included; delivery: time between two deliveries, each of all tokens of a "
        "round; per token: each token's share of the wait for its delivery"
    )
    return TextTable("Latency", note, header, tuple(rows), texts=2)


def _cycles(table: Table, labels: Mapping[str, str]) -> TextTable:
    rows = [
        (cell.set or "all", labels[cell.contender], number(cell.cycle_ms), *map(_share, (cell.draft, cell.verify, cell.host)))
        for cell in (*table.cells, *table.pooled)
    ]
    note = "one cycle; draft: choosing and drafting the tree; verify: the target's forward pass; host: the rest"
    return TextTable("Where a cycle's time goes", note, ("set", "contender", "ms", "draft", "verify", "host"), tuple(rows), texts=2)


def _trees(table: Table, labels: Mapping[str, str]) -> TextTable:
    rows = [(labels[cell.contender], _histogram(cell.trees), _histogram(cell.rows)) for cell in table.pooled]
    note = (
        "shares of the rounds of all sets; a tree is requested as nodes,depth,width; fewer rows are verified if the policy stopped "
        "drafting, the answer has less room, or the draft offered fewer tokens"
    )
    return TextTable("Trees", note, ("contender", "trees requested", "rows verified"), tuple(rows), texts=3)


def _histogram(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    """The most frequent keys with their shares, and how many others there are."""
    total = sum(counts.values())
    ordered = sorted(((str(key), count) for key, count in counts.items()), key=lambda item: -item[1])
    shown = [f"{key}: {100 * count / total:.0f}%" for key, count in ordered[:MAX_TREES]]
    rest = sum(count for _, count in ordered[MAX_TREES:])
    return "  ".join([*shown, f"{len(ordered) - MAX_TREES} others: {100 * rest / total:.0f}%"] if rest else shown) or "-"


def _ratio(ratio: Ratio | None) -> tuple[str, ...]:
    if ratio is None:
        return ("-",) * 5
    quartiles = "-".join(f"{each:.2f}" for each in ratio.quartiles)
    return (_times(ratio.median), _interval(ratio.median), quartiles, _times(ratio.sums), _interval(ratio.sums))


def _times(spread: Spread | None) -> str:
    return f"{spread.value:.2f}x" if spread else "-"


def _interval(spread: Spread | None) -> str:
    return "-" if spread is None or spread.low is None else f"{spread.low:.2f}-{spread.high:.2f}"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def percentile_texts(each: Percentiles | None) -> tuple[str, str]:
    return ("-", "-") if each is None else (f"{each.p50:.1f}", f"{each.p99:.1f}")
