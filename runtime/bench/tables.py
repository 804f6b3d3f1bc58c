"""The figures as tables of text: printed as Markdown, and shown in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .figures import Cell, Mean, Percentiles, Table
from .ratio import Ratio, Spread
from .record import BASELINE, ContenderRecord, Measurement

MOST_ACTIONS = 6  # shown by name


@dataclass(frozen=True)
class TextTable:
    """``note`` says how to read it; the first ``texts`` columns are text, the others are figures."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int


def grids(measurement: Measurement, table: Table) -> list[TextTable]:
    """All of them, the papers' first."""
    labels = {arm.name: label(arm) for arm in measurement.arms}
    return [
        _papers(measurement.sets, table, labels),
        _speed(table, labels),
        _latency(table, labels),
        _cycles(table, labels),
        _actions(table, labels),
    ]


def label(arm: ContenderRecord) -> str:
    """The arm's name, with its tree where the name does not say it."""
    return arm.name if arm.tree is None or arm.name in (BASELINE, arm.tree) else f"{arm.name} ({arm.tree})"


def headlines(measurement: Measurement, table: Table) -> Iterator[str]:
    """What was measured, and what one must know before believing it: differing tokens first."""
    yield from verdicts(measurement, table)
    engine, settings, machine = measurement.engine, measurement.settings, measurement.machine
    draft = f"draft {engine.draft}" + (f" ({engine.draft_name}, {engine.draft_precision})" if engine.draft_name else "")
    yield f"engine {engine.model} {engine.precision}, {draft}, {engine.backend} on {engine.device}, id {engine.id}"
    how = f"temperature {settings.temperature:g}, seed {settings.seed}" if settings.temperature else "greedy"
    turns = len(measurement.answers) // len(measurement.arms)
    yield f"{turns} turns of {len(measurement.sets)} sets, {how}, {settings.max_new_tokens} new tokens, {settings.threads} threads"
    peak = f", {machine.peak_memory >> 20} MiB at the peak with all arms in one process" if machine.peak_memory else ""
    yield f"{machine.processor}, {machine.cores} cores, {machine.system}, {measurement.date}{peak}"
    yield ", ".join(f"{name} {version}" for name, version in machine.versions.items())


def verdicts(measurement: Measurement, table: Table) -> Iterator[str]:
    """Differences, arms that were given up, turns that were left out, an early end."""
    compared = [cell for cell in table.pooled if cell.arm != BASELINE]
    tokens = sum(len(answer.tokens) for answer in measurement.answers if answer.arm != BASELINE)
    for cell in compared:
        if cell.differing_answers:
            yield (
                f"NOT LOSSLESS: {cell.arm} gives other answers than {BASELINE}: {cell.differing_answers} of {cell.answers} answers, "
                f"{cell.differing_tokens} tokens differ"
            )
    if compared and not any(cell.differing_answers for cell in compared):
        yield f"lossless: 0 of {tokens} tokens differ from {BASELINE}'s"
    for arm in measurement.arms:
        if arm.given_up:
            yield f"GIVEN UP: the guard of {arm.name} went back to its fixed tree: {arm.given_up}"
    for skipped in measurement.skipped:
        yield f"LEFT OUT: {skipped.set}, question {skipped.question}, from turn {skipped.turn} on: {skipped.reason}"
    if measurement.interrupted:
        yield "INTERRUPTED: these are the questions that all arms had answered"


def markdown(grid: TextTable) -> Iterator[str]:
    """Aligned, so that it is read as it stands too."""
    lines = [grid.header, *grid.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(grid.header))]
    figures = [column >= grid.texts for column in range(len(widths))]

    def row(cells: Sequence[str]) -> str:
        padded = (cell.rjust(width) if figure else cell.ljust(width) for cell, width, figure in zip(cells, widths, figures, strict=True))
        return f"| {' | '.join(padded)} |"

    yield f"## {grid.title}"
    yield from ("", grid.note, "")
    yield row(grid.header)
    yield "|" + "|".join("-" * (width + 1) + ("-:"[figure]) for width, figure in zip(widths, figures, strict=True)) + "|"
    yield from map(row, grid.rows)


def _papers(sets: Sequence[str], table: Table, labels: Mapping[str, str]) -> TextTable:
    cells = {(cell.set, cell.arm): cell for cell in table.cells}

    def short(ratio: Spread | None, length: float | None) -> str:
        return f"{_times(ratio)} {_number(length)}"

    rows = []
    for mean in table.means:
        row = [cells[name, mean.arm] for name in sets]
        figures = [short(cell.ratio.median if cell.ratio else None, cell.tokens_per_cycle) for cell in row]
        rows.append((labels[mean.arm], *figures, *([short(mean.median, mean.tokens_per_cycle)] if len(sets) > 1 else [])))
    header = ("arm", *sets, *(["mean"] if len(sets) > 1 else []))
    note = f"tokens/s over {BASELINE} (median over questions), then tokens per cycle; the mean counts every set the same"
    return TextTable("Speed and tokens per cycle", note, header, tuple(rows), texts=1)


def _speed(table: Table, labels: Mapping[str, str]) -> TextTable:
    header = ("set", "arm", "tokens/s", "median", "95 %", "quartiles", "of sums", "95 %", "tokens/cycle", "acceptance by depth", "differ")
    rows = [_speed_row(cell, labels) for cell in table.cells]
    rows += [_mean_row(mean, labels) for mean in table.means] if len({cell.set for cell in table.cells}) > 1 else []
    note = (
        f"median: of the ratios to {BASELINE}, question by question; of sums: all tokens over all seconds, over the same of {BASELINE}; "
        "95 %: bootstrap over questions; acceptance by depth i: of the rounds that accepted i - 1 draft tokens, the share that accepted "
        f"one more; differ: answers with a token that is not {BASELINE}'s"
    )
    return TextTable("Speed", note, header, tuple(rows), texts=2)


def _speed_row(cell: Cell, labels: Mapping[str, str]) -> tuple[str, ...]:
    figures = _ratio(cell.ratio)
    depths = " ".join(f"{share:.2f}".removeprefix("0") for share in cell.acceptance) or "-"
    wrong = f"{cell.differing_answers}/{cell.answers}"
    return (
        cell.set or "all",
        labels[cell.arm],
        _number(cell.tokens_per_second, 1),
        *figures,
        _number(cell.tokens_per_cycle),
        depths,
        wrong,
    )


def _mean_row(mean: Mean, labels: Mapping[str, str]) -> tuple[str, ...]:
    median, sums = (_times(mean.median), _interval(mean.median)), (_times(mean.sums), _interval(mean.sums))
    return ("mean", labels[mean.arm], _number(mean.tokens_per_second, 1), *median, "", *sums, _number(mean.tokens_per_cycle), "", "")


def _latency(table: Table, labels: Mapping[str, str]) -> TextTable:
    header = ("set", "arm", "first token p50", "p99", "delivery p50", "p99", "per token p50", "p99", "prefill tokens/s")
    rows = []
    for cell in (*table.cells, *table.pooled):
        spans = (_percentiles(each) for each in (cell.first_token, cell.delivery, cell.token))
        rows.append(
            (cell.set or "all", labels[cell.arm], *(text for pair in spans for text in pair), f"{cell.prefill_tokens_per_second:.0f}")
        )
    note = (
        "milliseconds; first token: from the call, the prompt included; delivery: the wait between two deliveries, each of which brings a "
        "round's tokens at once; per token: every token's share of the wait for its delivery"
    )
    return TextTable("Latency", note, header, tuple(rows), texts=2)


def _cycles(table: Table, labels: Mapping[str, str]) -> TextTable:
    rows = [
        (cell.set or "all", labels[cell.arm], _number(cell.cycle_ms), *map(_share, (cell.draft, cell.verify, cell.host)))
        for cell in (*table.cells, *table.pooled)
    ]
    note = "one cycle; draft: choosing and growing the tree; verify: the target's pass; host: accepting, committing, keeping the books"
    return TextTable("Where a cycle's time goes", note, ("set", "arm", "ms", "draft", "verify", "host"), tuple(rows), texts=2)


def _actions(table: Table, labels: Mapping[str, str]) -> TextTable:
    rows = [(labels[cell.arm], _histogram(cell.trees), _histogram(cell.rows)) for cell in table.pooled]
    note = (
        "shares of all rounds, every set counted; a tree is asked for as nodes,depth,width; fewer rows are verified where the policy or "
        "the end of the answer cut it, or where the draft had less to offer"
    )
    return TextTable("Trees", note, ("arm", "trees asked for", "rows verified"), tuple(rows), texts=3)


def _histogram(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    """The commonest, and how many others there are."""
    total = sum(counts.values())
    ordered = sorted(((str(key), count) for key, count in counts.items()), key=lambda item: -item[1])
    shown = [f"{key}: {100 * count / total:.0f}%" for key, count in ordered[:MOST_ACTIONS]]
    rest = sum(count for _, count in ordered[MOST_ACTIONS:])
    return "  ".join([*shown, f"{len(ordered) - MOST_ACTIONS} others: {100 * rest / total:.0f}%"] if rest else shown) or "-"


def _ratio(ratio: Ratio | None) -> tuple[str, ...]:
    if ratio is None:
        return ("-",) * 5
    quartiles = "-".join(f"{each:.2f}" for each in ratio.quartiles)
    return (_times(ratio.median), _interval(ratio.median), quartiles, _times(ratio.sums), _interval(ratio.sums))


def _times(spread: Spread | None) -> str:
    return f"{spread.value:.2f}x" if spread else "-"


def _interval(spread: Spread | None) -> str:
    return "-" if spread is None or spread.low is None else f"{spread.low:.2f}-{spread.high:.2f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _percentiles(each: Percentiles | None) -> tuple[str, str]:
    return ("-", "-") if each is None else (f"{each.p50:.1f}", f"{each.p99:.1f}")
