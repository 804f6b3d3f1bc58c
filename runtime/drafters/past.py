"""A suffix index over past answers: what was answered after the same words before is proposed again (SuffixDecoding, arXiv 2411.04975).

All tokens lie in one ring of fixed size, so the oldest leave first. Every place in an answer is listed under the tokens before it, as in a
compressor: a table leads to the latest place, and each place to the one before it. A pointer may lead to a place that was overwritten
since; comparing tokens and owner is the check. No tenant is ever shown what another was answered.
"""

from __future__ import annotations

import secrets
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from queue import SimpleQueue

GRAMS = (12, 4)
"""Places are listed under so many tokens. The longer list finds one answer among many that begin alike."""
SLOT_BYTES = 12 + 8 * len(GRAMS)
"""Memory of one token."""
MAX_MATCH = 32  # tokens; longer matches are not better
_TRIES = 8  # places that are compared in a list
_SEPARATOR = -1  # stands between answers; no token has this id


class PastAnswers:
    """The answers of all requests, in ``size`` bytes. Any thread may call it."""

    def __init__(self, size: int) -> None:
        self._slots = size // SLOT_BYTES
        self._tokens, self._owners = array("i", [_SEPARATOR]) * self._slots, array("q", [0]) * self._slots
        self._lists = [(gram, array("i", [0]) * self._slots, array("i", [0]) * self._slots) for gram in GRAMS]
        self._next, self._secret, self._lock = 0, secrets.token_bytes(16), threading.Lock()
        self._ended: SimpleQueue[tuple[Past, Sequence[int], Sequence[int]]] = SimpleQueue()
        self._forgotten = 0  # times

    def of(self, tenant: str | None, store: bool = True) -> Past:
        """What a request of ``tenant`` may look up. ``store``: whether its own answer is kept."""
        name = b"" if tenant is None else b"=" + tenant.encode("utf-8", "surrogatepass")
        with self._lock:
            while not self._ended.empty():
                self._add(*self._ended.get())
            return Past(self, int.from_bytes(blake2b(name, digest_size=7, key=self._secret).digest()) + 1, store, self._forgotten)

    def keep(self, past: Past, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep the answer of a request; later ones find it. Needs no lock, because a finalizer may call it at any moment."""
        self._ended.put((past, prompt[-MAX_MATCH:], answer[: self._slots - MAX_MATCH - 1]))

    def forget(self) -> None:
        """Drop everything, what running requests are being answered included."""
        with self._lock:
            self._forgotten += 1  # running requests will not be kept
            while not self._ended.empty():
                self._ended.get()
            self._tokens, self._owners = array("i", [_SEPARATOR]) * self._slots, array("q", [0]) * self._slots

    def find(self, owner: int, text: Sequence[int], root: int, most: int) -> tuple[int, list[int]]:
        """The longest match of the end of ``text`` with ``root`` appended, the latest among equals: (its length in tokens, at most ``most``
        tokens that followed it); (0, []) if there is none."""
        end = [*text[1 - MAX_MATCH :], root][::-1]
        tokens, owners, best, at = self._tokens, self._owners, 0, 0
        with self._lock:
            for gram, latest, earlier in self._lists:
                place = latest[self._row(owner, end[:gram])] if len(end) >= gram > best else 0
                for _ in range(_TRIES):
                    if place == 0:
                        break
                    matched = 0
                    while matched < len(end) and tokens[place - 1 - matched] == end[matched]:
                        matched += 1
                    if matched > max(best, gram - 1) and owners[place - 1] == owner:
                        best, at = matched, place
                    place = earlier[place - 1]
            return best, self._following(owner, at, most) if best else []

    def _following(self, owner: int, place: int, most: int) -> list[int]:
        found: list[int] = []
        for step in range(most):
            slot = (place + step) % self._slots
            if self._tokens[slot] == _SEPARATOR or self._owners[slot] != owner:
                break
            found.append(self._tokens[slot])
        return found

    def _add(self, past: Past, before: Sequence[int], answer: Sequence[int]) -> None:
        if past.forgotten != self._forgotten:
            return
        owner, text = past.owner, [*before, *answer]
        self._write(self._next + len(text), 0, _SEPARATOR)  # first: nothing leads from the end into older text
        for at, token in enumerate(text):
            self._write(self._next + at, owner, token)
            if len(before) <= at + 1 < len(text):  # an answer's token follows
                place = (self._next + at) % self._slots
                for gram, latest, earlier in self._lists:
                    if at + 1 >= gram:
                        row = self._row(owner, text[at : at - gram if at >= gram else None : -1])
                        earlier[place], latest[row] = latest[row], place + 1
        self._next = (self._next + len(text) + 1) % self._slots

    def _write(self, place: int, owner: int, token: int) -> None:
        self._tokens[place % self._slots], self._owners[place % self._slots] = token, owner

    def _row(self, owner: int, gram: Sequence[int]) -> int:
        return hash((owner, *gram)) % self._slots


@dataclass(frozen=True)
class Past:
    """One request's view of the past answers. ``owner``: stands for its tenant. ``store``: whether its answer is kept, unless what was
    answered is forgotten before the request ends. ``forgotten``: how often that had happened when it began."""

    answers: PastAnswers
    owner: int
    store: bool
    forgotten: int

    def find(self, text: Sequence[int], root: int, most: int) -> tuple[int, list[int]]:
        """As `PastAnswers.find`, among the answers of this request's tenant."""
        return self.answers.find(self.owner, text, root, most)

    def keep(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep the answer, if the request lets it be kept."""
        if self.store and answer:
            self.answers.keep(self, prompt, answer)
