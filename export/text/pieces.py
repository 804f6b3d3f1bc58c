"""SentencePiece's merges: the tokenizers package wants pairs in an order, SentencePiece has a score for each piece."""

from __future__ import annotations

from collections.abc import Sequence


def merges_of(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best-scored piece first. Raises ValueError if a piece has no score."""
    if len(scores) < len(tokens):
        raise ValueError(f"it has {len(tokens)} pieces and {len(scores)} scores")
    known = {token: index for index, token in enumerate(tokens)}
    pairs = []
    for token, score in zip(tokens, scores, strict=False):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        local = [(left, right) for left, right in halves if left in known and right in known]
        local.sort(key=lambda pair: (known[pair[0]], known[pair[1]]))
        pairs += [(score, pair) for pair in local]
    pairs.sort(key=lambda each: (-each[0], len(each[1][0]), len(each[1][1])))
    return [pair for _, pair in pairs]
