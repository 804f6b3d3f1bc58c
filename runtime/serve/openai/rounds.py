"""The rounds of an answer as JSON, for clients that ask for them: where each token came from, the verified tree, and the time."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from ...decoder import Decoder
from ...decoding.loop import Round
from ...request import Chunk


class RoundWriter:
    """Writes the chunks of one answer, in their order. ``prompt``: its token ids."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._utf8 = getincrementaldecoder("utf-8")("replace")
        self._first = not any(map(decoder.token_bytes, prompt))
        self._ended: float | None = None  # the last round, by the clock perf_counter

    def written(self, chunk: Chunk) -> dict[str, Any]:
        """``tokens``: id, text, where it came from (target, draft, lookup, forced) and its depth in the tree, 0 for the target's own. The
        joined texts are the answer, so a token that ends within a character has less. A first chunk has no more than that."""
        round_, tokens = chunk.round, []
        for at, token in enumerate(chunk.tokens):
            drafted = round_ is not None and at < chunk.accepted
            origin = round_.tree.source if round_ is not None and drafted else "target"
            tokens.append({"id": token, "text": self._piece(token), "from": origin, "depth": at + 1 if drafted else 0})
        return {"tokens": tokens, **({} if round_ is None else self._tree(round_))}

    def _piece(self, token: int) -> str:
        piece = self._decoder.token_bytes(token, first=self._first)
        self._first = self._first and not piece
        return self._utf8.decode(piece)

    def _tree(self, round_: Round) -> dict[str, Any]:
        tree, spec = round_.tree, round_.spec
        commit = round_.seconds - round_.draft_seconds - round_.verify_seconds
        between = 0.0 if self._ended is None else round_.started - self._ended
        self._ended = round_.started + round_.seconds
        times = {"draft": round_.draft_seconds, "verify": round_.verify_seconds, "commit": commit, "between": between}
        names = [self._decoder.token_bytes(token, special=True).decode("utf-8", "replace") for token in tree.tokens.tolist()]
        return {
            "asked": {"nodes": spec.nodes, "depth": spec.depth, "width": spec.width},
            "tree": {"texts": names, "parents": tree.parent.tolist(), "source": tree.source},
            "path": list(round_.path),
            "ms": {name: round(1000 * seconds, 3) for name, seconds in times.items()},
        }
