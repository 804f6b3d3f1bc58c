"""Who is next: the lowest priority, then the clients in turn, each with its oldest request. Who must leave a full line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random

from runtime.serve.admission.line import Line, Waiting
from runtime.serve.admission.turn import Turn


def in_a_loop(test: Callable[[], None]) -> None:
    """Futures belong to an event loop."""

    async def run() -> None:
        test()

    asyncio.run(run())


def waiting(client: str, priority: int = 0) -> Waiting:
    return Waiting([1], Turn(client, priority, 1e9, 1.0), asyncio.get_running_loop().create_future())


def line_of(*turns: tuple[str, int]) -> tuple[Line, list[Waiting]]:
    """A line in which these (client, priority) arrived, and its requests in the order of their arrival."""
    line, arrived = Line(), [waiting(*each) for each in turns]
    for each in arrived:
        line.add(each)
    return line, arrived


def served(line: Line) -> list[Waiting]:
    taken = []
    while each := line.take():
        taken.append(each)
    return taken


def test_one_client_is_served_first_come_first_served_and_the_lowest_priority_first() -> None:
    def test() -> None:
        line, arrived = line_of(("a", 0), ("a", 5), ("a", 0), ("a", -2))
        assert line.by_priority() == {0: 2, 5: 1, -2: 1}
        assert served(line) == [arrived[3], arrived[0], arrived[2], arrived[1]]
        assert served(line) == []

    in_a_loop(test)


def test_clients_take_turns() -> None:
    def test() -> None:
        line, arrived = line_of(("a", 0), ("a", 0), ("a", 0), ("b", 0), ("c", 0), ("b", 0))
        assert [each.turn.client for each in served(line)] == list("abcaba")
        line, arrived = line_of(("a", 0), ("a", 0), ("a", 0))
        assert line.take() is arrived[0]
        late = waiting("b")
        line.add(late)
        assert served(line) == [arrived[1], late, arrived[2]]

    in_a_loop(test)


def test_a_request_that_is_over_is_neither_counted_nor_taken() -> None:
    def test() -> None:
        line, arrived = line_of(("a", 0), ("a", 0), ("b", 0))
        arrived[0].place.cancel()
        assert line.by_priority() == {0: 2}
        assert line.take() is arrived[1]
        line.remove(arrived[0])
        line.remove(arrived[0])
        assert served(line) == [arrived[2]]

    in_a_loop(test)


def test_the_requests_ahead_are_those_that_are_served_before() -> None:
    def test() -> None:
        for seed in range(200):
            dice = Random(seed)
            line, _ = line_of(*((dice.choice("abc"), dice.randrange(3)) for _ in range(dice.randrange(12))))
            late = waiting(dice.choice("abcd"), dice.randrange(3))
            ahead = line.ahead_of(late.turn)
            line.add(late)
            assert abs(served(line).index(late) - ahead) == 0

    in_a_loop(test)


def test_a_full_line_gives_up_the_last_priority_and_the_greediest_client_first() -> None:
    def test() -> None:
        line, arrived = line_of(("a", 0), ("b", 0), ("a", 0), ("a", 0), ("b", 0))
        new = waiting("c").turn
        assert line.displaced_by(new) is arrived[3]
        assert line.displaced_by(waiting("b").turn) is None  # both would have three
        assert line.displaced_by(waiting("a").turn) is None
        assert line.displaced_by(waiting("c", 1).turn) is None
        assert line.displaced_by(waiting("a", -1).turn) is arrived[3]
        siblings = [replace(waiting("a"), sibling=True) for _ in range(2)]
        for each in siblings:
            line.add(each)  # the first answer of their request may have begun, so they leave last
        assert line.displaced_by(new) is arrived[3]
        for each in (arrived[0], arrived[2], arrived[3]):
            line.remove(each)
        line.add(replace(waiting("a"), sibling=True))
        assert line.displaced_by(new) is not None
        for each in list(line):
            line.remove(each)
        for each in arrived:
            line.add(each)
        later = waiting("d", 7)
        line.add(later)
        assert line.displaced_by(new) is later
        later.place.cancel()
        assert line.displaced_by(new) is arrived[3]
        assert Line().displaced_by(new) is None

    in_a_loop(test)
