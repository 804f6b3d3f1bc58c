"""Computes the rows of the table from the turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.peers.compare import Closeness, first_difference, same_prefix
from scripts.peers.contenders import PeerContender
from scripts.peers.questions import PeerQuestion
from scripts.peers.turns import Turn

BASE = "transformers-fp32"


@dataclass(frozen=True)
class Row:
    """One contender. Rates in tokens/s (median, lowest and highest over all answers of all turns), times in ms and s, memory in MiB.

    ``to_base``, ``to_peer``: medians of the ratios to transformers and to ``best_peer`` of the same precision, each on the same question in
    the same turn. ``per_arrival``: mean number of tokens delivered at once; tokens per cycle if the engine delivers every cycle. ``same``:
    answers equal to the plain contender's, of ``compared``; ``prefix``: share of the float32 answer that is a common prefix.
    """

    contender: PeerContender
    rate: float
    lowest: float
    highest: float
    to_base: float | None
    to_peer: float | None
    best_peer: str | None
    first_ms: float
    prefill_rate: float
    load_seconds: float
    peak_mib: float
    others: float
    per_arrival: float
    same: int | None
    compared: int
    prefix: float | None
    closeness: Closeness | None


def rates(turns: Sequence[Turn]) -> list[list[float | None]]:
    """tokens/s by turn and question."""
    return [[answer.rate for answer in turn.answers] for turn in turns]


def paired_ratio(mine: Sequence[Turn], other: Sequence[Turn]) -> float | None:
    """Median over questions and turns of the ratio of rates on the same question in the same turn."""
    pairs = [
        left / right
        for my_turn, their_turn in zip(rates(mine), rates(other), strict=False)
        for left, right in zip(my_turn, their_turn, strict=True)
        if left and right
    ]
    return statistics.median(pairs) if pairs else None


def median_rate(turns: Sequence[Turn]) -> float:
    return statistics.median([rate for turn in rates(turns) for rate in turn if rate] or [0.0])


def best_peers(contenders: Sequence[PeerContender], turns: Mapping[str, Sequence[Turn]]) -> dict[str, str]:
    """The fastest of the other engines for each precision."""
    best_of: dict[str, str] = {}
    for contender in contenders:
        if contender.ours or not turns.get(contender.name):
            continue
        current = best_of.get(contender.precision)
        if current is None or median_rate(turns[contender.name]) > median_rate(turns[current]):
            best_of[contender.precision] = contender.name
    return best_of


def reference_name(contenders: Sequence[PeerContender], turns: Mapping[str, Sequence[object]]) -> str | None:
    """The float32 reference for text and logits: our plain decoding, else transformers, else the first plain contender."""
    plain = [
        contender.name
        for contender in contenders
        if contender.precision == "fp32" and not contender.speculates and turns.get(contender.name)
    ]
    return next((name for name in ("resps-fp32", BASE, *plain) if name in plain), None)


def rows(
    contenders: Sequence[PeerContender],
    questions: Sequence[PeerQuestion],
    turns: Mapping[str, Sequence[Turn]],
    close: Mapping[str, Closeness],
) -> list[Row]:
    """One row per contender that finished a turn."""
    best, reference = best_peers(contenders, turns), reference_name(contenders, turns)
    reference_tokens = [answer.tokens for answer in turns[reference][0].answers] if reference else None
    table = []
    for contender in contenders:
        mine = turns.get(contender.name)
        if not mine:
            continue
        answers = [answer for turn in mine for answer in turn.answers]
        answer_rates = [rate for turn in rates(mine) for rate in turn if rate] or [0.0]
        model = reference if contender.precision == "fp32" else contender.plain if contender.speculates else None
        expected = [answer.tokens for answer in turns[model][0].answers] if model and turns.get(model) else None
        prompts = sum(len(question.tokens) for question in questions)
        peer = best.get(contender.precision)
        table.append(
            Row(
                contender=contender,
                rate=statistics.median(answer_rates),
                lowest=min(answer_rates),
                highest=max(answer_rates),
                to_base=paired_ratio(mine, turns[BASE]) if turns.get(BASE) else None,
                to_peer=paired_ratio(mine, turns[peer]) if peer else None,
                best_peer=peer,
                first_ms=1000 * statistics.median(answer.first_seconds for answer in answers),
                prefill_rate=statistics.median(prompts / sum(answer.first_seconds for answer in turn.answers) for turn in mine),
                load_seconds=statistics.median(turn.load_seconds for turn in mine),
                peak_mib=max(turn.peak_mib for turn in mine),
                others=statistics.median(turn.others for turn in mine),
                per_arrival=sum(answer.decoded for answer in answers) / max(1, sum(answer.arrivals for answer in answers)),
                same=None if expected is None else _same(mine, expected),
                compared=len(answers),
                prefix=None if reference_tokens is None else statistics.mean(_prefixes(mine, reference_tokens)),
                closeness=close.get(contender.name),
            )
        )
    return table


def _same(turns: Sequence[Turn], expected: Sequence[list[int]]) -> int:
    return sum(
        first_difference(answer.tokens, tokens) is None for turn in turns for answer, tokens in zip(turn.answers, expected, strict=True)
    )


def _prefixes(turns: Sequence[Turn], reference_tokens: Sequence[list[int]]) -> list[float]:
    return [same_prefix(answer.tokens, tokens) for turn in turns for answer, tokens in zip(turn.answers, reference_tokens, strict=True)]
