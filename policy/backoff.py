"""Where trees keep losing against plain decoding, most rounds are plain: text that the draft cannot guess costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

# In rounds. Impatience costs more than patience: pauses after six rounds without luck took 3 % of all speed
# (docs/lab/policies.md, "Watchdog and backoff").
PATIENCE, MEMORY, PROBE, SHORTEST_PAUSE, LONGEST_PAUSE = 24, 32, 4, 16, 64


@dataclass
class Backoff:
    """Counts, per request, what trees gained over plain decoding of the same tokens; when that is less than nothing for longer than by
    chance, pauses follow, longer and longer, with a few rounds between that are judged on their own: text changes."""

    _advantage: float = field(default=0.0, init=False)
    _pause: int = field(default=0, init=False)
    _rounds_left: int = field(default=0, init=False)
    _patience: int = field(default=PATIENCE, init=False)
    _probe: list[float] | None = field(default=None, init=False)

    def begin(self) -> None:
        self._advantage, self._pause, self._rounds_left, self._patience, self._probe = 0.0, 0, 0, PATIENCE, None

    def should_pause(self) -> bool:
        """Whether the next round is to be plain; each is asked about once."""
        if not self._rounds_left:
            return False
        self._rounds_left -= 1
        return True

    def observe(self, advantage: float) -> None:
        """``advantage``: milliseconds that plain decoding would have taken longer for the tokens of a round with a tree."""
        if self._probe is not None:
            self._probe.append(advantage)
            if len(self._probe) == PROBE:
                self._judge(sum(self._probe) / PROBE)
            return
        self._advantage += (advantage - self._advantage) / MEMORY
        self._patience -= 1
        if self._patience <= 0 and self._advantage < 0:
            self._start_pause()

    def _judge(self, mean: float) -> None:
        if mean < 0:
            self._start_pause()
        else:
            self._advantage, self._pause, self._patience, self._probe = 0.0, 0, PATIENCE, None

    def _start_pause(self) -> None:
        self._pause = min(max(SHORTEST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self._rounds_left, self._probe = self._pause, []
