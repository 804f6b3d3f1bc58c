"""Backoff: decode plainly for a while when trees keep losing against plain decoding, so that text the draft cannot guess costs little."""

from __future__ import annotations

from dataclasses import dataclass, field

# All in rounds. Short patience is expensive: backing off after six bad rounds cost 3 % of all speed
# (docs/lab/policies.md, "Watchdog and backoff").
PATIENCE, AVERAGING_WINDOW, PROBE_LENGTH, SHORTEST_PAUSE, LONGEST_PAUSE = 24, 32, 4, 16, 64


@dataclass
class Backoff:
    """Tracks the time that trees save over plain decoding of the same tokens.

    After at least PATIENCE rounds with a negative running mean it asks for a pause of plain rounds. After each pause it probes: it judges
    the next PROBE_LENGTH rounds with a tree on their own, because the text may have changed. A failed probe doubles the pause."""

    _mean_advantage: float = field(default=0.0, init=False)
    _pause_length: int = field(default=0, init=False)
    _pause_rounds_left: int = field(default=0, init=False)
    _patience_left: int = field(default=PATIENCE, init=False)
    _probe: list[float] | None = field(default=None, init=False)

    def begin(self) -> None:
        """Start a new request. It has no patience if the last one ended while trees lost, as requests in a row are often alike; one that
        ended before that was judged leaves it what it had left."""
        self._probe = None if self._probe is None else []
        self._pause_length = self._pause_rounds_left = 0
        if self._mean_advantage >= 0:
            self._mean_advantage, self._patience_left = 0.0, PATIENCE

    def should_pause(self) -> bool:
        """Whether the next round is to be plain. Call it once per round."""
        if not self._pause_rounds_left:
            return False
        self._pause_rounds_left -= 1
        return True

    def observe(self, advantage: float) -> None:
        """Record a round with a tree. ``advantage``: milliseconds that it saved over plain decoding of the same tokens."""
        if self._probe is not None:
            self._probe.append(advantage)
            if len(self._probe) == PROBE_LENGTH:
                self._end_probe(sum(self._probe) / PROBE_LENGTH)
            return
        self._mean_advantage += (advantage - self._mean_advantage) / AVERAGING_WINDOW
        self._patience_left -= 1
        if self._patience_left <= 0 and self._mean_advantage < 0:
            self._start_pause()

    def _end_probe(self, mean: float) -> None:
        if mean < 0:
            self._start_pause()
        else:
            self._mean_advantage, self._pause_length, self._patience_left, self._probe = 0.0, 0, PATIENCE, None

    def _start_pause(self) -> None:
        self._pause_length = min(max(SHORTEST_PAUSE, 2 * self._pause_length), LONGEST_PAUSE)
        self._pause_rounds_left, self._probe = self._pause_length, []
