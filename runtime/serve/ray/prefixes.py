"""Which replica has most of a prompt in its cache, by what was sent there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from hashlib import blake2b

BLOCK = 128  # characters; a prompt's end that fills no block does not count
MOST = 4096  # blocks that are remembered of a replica, the latest ones


class Prefixes:
    """The beginnings of prompts by replica, as hashes of blocks that each depend on all blocks before."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, OrderedDict[bytes, None]] = {}

    def add(self, replica: Hashable, text: str) -> None:
        """``text`` was sent to ``replica``."""
        seen = self._seen.setdefault(replica, OrderedDict())
        for block in _blocks(text):
            seen[block] = None
            seen.move_to_end(block)
        while len(seen) > MOST:
            seen.popitem(last=False)

    def keep(self, replicas: Iterable[Hashable]) -> None:
        """Forget all replicas but these."""
        kept = set(replicas)
        self._seen = {replica: seen for replica, seen in self._seen.items() if replica in kept}

    def holder(self, text: str) -> Hashable | None:
        """The replica that got most of ``text`` before, if that is half of it at least: its beginning alone is what all chats share."""
        blocks = list(_blocks(text))
        best, most = None, 0
        for replica, seen in self._seen.items():
            known = next((at for at, block in enumerate(blocks) if block not in seen), len(blocks))
            if known > most:
                best, most = replica, known
        return best if 2 * most >= len(blocks) else None


def _blocks(text: str) -> Iterator[bytes]:
    before = b""
    for start in range(0, len(text) - BLOCK + 1, BLOCK):
        before = blake2b(before + text[start : start + BLOCK].encode("utf-8", "surrogatepass"), digest_size=8).digest()
        yield before
