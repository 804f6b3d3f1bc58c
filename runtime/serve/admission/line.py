"""The line in which requests wait: by priority, and within a priority one request of each client in turn."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..replica import Replica
from .turn import Turn


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request in the line. ``place``: gets the replica that has a lane for it, or an ApiError. ``sibling``: whether it is not the first
    answer to its request, which ends if this one has to leave."""

    prompt: Sequence[int]
    turn: Turn
    place: asyncio.Future[Replica]
    sibling: bool = False


class Line:
    """Requests in the order in which they are served.

    A client's own requests are first come, first served. Within a priority the clients take turns, so a client that sends many requests
    delays another client's next one by one request only.
    """

    def __init__(self) -> None:
        self._clients: dict[int, dict[str, deque[Waiting]]] = {}  # by priority; the client whose turn it is comes first

    def __iter__(self) -> Iterator[Waiting]:
        """Those that still wait, the one whose turn it is first. A request that timed out is done a moment before it leaves the line."""
        for priority in sorted(self._clients):
            for requests in self._clients[priority].values():
                yield from (each for each in requests if not each.place.done())

    def by_priority(self) -> Counter[int]:
        """How many wait."""
        return Counter(each.turn.priority for each in self)

    def add(self, waiting: Waiting) -> None:
        """Put a request at the end of its client's requests, and a new client at the end of the clients."""
        turn = waiting.turn
        self._clients.setdefault(turn.priority, {}).setdefault(turn.client, deque()).append(waiting)

    def remove(self, waiting: Waiting) -> None:
        """Take out a request. Does nothing if it has left."""
        priority, client = waiting.turn.priority, waiting.turn.client
        clients = self._clients.get(priority, {})
        requests = clients.get(client, deque())
        if waiting in requests:
            requests.remove(waiting)
            if not requests:
                del clients[client]
            if not clients:
                del self._clients[priority]

    def take(self, may_run: Callable[[Turn], bool] = lambda _: True) -> Waiting | None:
        """Take out the request whose turn it is, of those that ``may_run``; None if nobody of them waits."""
        first = next((each for each in self if may_run(each.turn)), None)
        if first is not None:
            self.remove(first)
            clients = self._clients.get(first.turn.priority, {})
            if first.turn.client in clients:
                clients[first.turn.client] = clients.pop(first.turn.client)  # the other clients come first now
        return first

    def ahead_of(self, turn: Turn) -> int:
        """How many of the waiting requests would be served before a new one with this ``turn``."""
        clients = Counter(each.turn.client for each in self if each.turn.priority == turn.priority)  # in their turns
        own, rounds, ahead = clients[turn.client], clients[turn.client] + 1, sum(each.turn.priority < turn.priority for each in self)
        for client, count in clients.items():
            if client == turn.client:
                rounds = own  # clients after it come once less
            ahead += min(count, rounds)
        return ahead

    def displaced_by(self, turn: Turn) -> Waiting | None:
        """The request that must leave a full line for a new one with this ``turn``: the newest one of the greediest client in the last
        priority. None if the new one has no better claim: it comes at a later priority, or its client has no fewer requests here."""
        last = max((each.turn.priority for each in self), default=turn.priority)
        waiting = [each for each in self if each.turn.priority == last]
        counts = Counter(each.turn.client for each in waiting)
        most = max(counts.values(), default=0)
        if last < turn.priority or (last == turn.priority and most <= counts[turn.client] + 1):
            return None
        greedy = [each for each in waiting if counts[each.turn.client] == most]
        return ([each for each in greedy if not each.sibling] or greedy)[-1]
