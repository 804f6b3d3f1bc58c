"""When plain decoding takes over for a while."""

from __future__ import annotations

from policy.backoff import PATIENCE, PROBE_LENGTH, Backoff


def test_after_a_request_whose_trees_lost_the_next_one_has_no_patience() -> None:
    backoff = Backoff()

    def drafted(advantage: float, rounds: int) -> int:
        backoff.begin()
        trees = 0
        for _ in range(rounds):
            if not backoff.should_pause():
                trees += 1
                backoff.observe(advantage)
        return trees

    assert drafted(-1.0, 30) == 24
    assert [drafted(-1.0, 2), drafted(-1.0, 12)] == [2, 4]  # a request that ended before it was judged is no comfort
    assert [drafted(1.0, 12), drafted(-1.0, 12)] == [12, 12]


def test_short_requests_that_lose_are_judged_together() -> None:
    """Each ends before the patience of one does."""
    backoff, drafted = Backoff(), 0
    for _ in range(20):
        backoff.begin()
        for _ in range(10):
            if not backoff.should_pause():
                drafted += 1
                backoff.observe(-1.0)
    assert drafted == PATIENCE + 17 * PROBE_LENGTH
    backoff.begin()
    for _ in range(8 * PATIENCE):
        backoff.should_pause()
        backoff.observe(1.0)
    assert not backoff.should_pause()
