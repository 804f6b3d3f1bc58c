"""What the caches of all backends share: the number of committed slots, and the span that a pass may access."""

from __future__ import annotations

from abc import ABC, abstractmethod


class SpannedCache(ABC):
    """A Cache of ``capacity`` slots. Subclasses store the rows and move them when the span changes."""

    def __init__(self, capacity: int, span_step: int) -> None:
        self.capacity, self._step = capacity, span_step
        self._length = self._span = 0

    @property
    def length(self) -> int:
        """Committed slots."""
        return self._length

    @property
    def span(self) -> int:
        """Slots that a pass may access now."""
        return self._span

    @abstractmethod
    def span_for(self, slots: int) -> int:
        """The span to reserve when ``slots`` are needed."""

    def reserve(self, span: int) -> None:
        """Grow to ``span`` slots; committed rows keep their values."""
        if not self._span <= span <= self.capacity:
            raise ValueError(f"the cache cannot grow from {self._span} to {span} slots, its capacity is {self.capacity}")
        self._change_span(span)

    def truncate(self, length: int) -> None:
        """Keep only the first ``length`` slots, and shrink the span to fit, as a pass reads all of it."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} committed slots to {length}")
        self._length = length
        if length == 0:
            # Masked slots have weight zero, and zero times NaN is NaN: clear what a failed pass may have left.
            self._clear()
            self._span = 0
        elif (span := self.span_for(length)) < self._span:
            self._change_span(span)

    @abstractmethod
    def _change_span(self, span: int) -> None:
        """Move the committed rows to the layout of ``span`` slots, and set the span."""

    @abstractmethod
    def _clear(self) -> None:
        """Set all slots of the span to zero."""
