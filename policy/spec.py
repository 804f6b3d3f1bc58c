"""TreeSpec: the size of a draft tree. The whole project counts alike: ``nodes`` includes the root, ``depth`` does not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class TreeSpec:
    """Bounds of one draft tree: ``nodes`` rows to verify (root included), ``depth`` levels below the root, ``width`` beams per level.

    ``TreeSpec(1, 0, 0)`` is plain decoding. In the papers' numbers (EAGLE, Re-SpS): nodes = total_tokens, depth = their depth + 1,
    width = top_k. Raises ValueError for an impossible tree: each of a level's ``width`` beams has ``width`` candidates.
    """

    nodes: int
    depth: int
    width: int

    def __post_init__(self) -> None:
        for name in ("nodes", "depth", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"tree {name} must be a whole number, not {value!r}")
        if self.nodes < 1 or self.depth < 0 or self.width < 0:
            raise ValueError(f"a tree needs nodes >= 1, depth >= 0 and width >= 0, not {self}")
        if self.nodes > self.capacity:
            raise ValueError(f"a tree of depth {self.depth} and width {self.width} has at most {self.capacity} nodes, not {self.nodes}")

    @property
    def capacity(self) -> int:
        """The most nodes that depth and width allow, root included."""
        return 1 + (self.width + (self.depth - 1) * self.width**2 if self.depth else 0)

    def within(self, nodes: int, depth: int) -> TreeSpec:
        """This tree clipped to at most ``nodes`` rows and ``depth`` levels, as near the end of the context or of the answer."""
        if nodes >= self.nodes and depth >= self.depth:
            return self
        if min(nodes - 1, depth) < 1:
            return PLAIN
        cut = TreeSpec(1, min(depth, self.depth), self.width)
        return TreeSpec(max(1, min(nodes, self.nodes, cut.capacity)), cut.depth, cut.width)

    def __str__(self) -> str:
        return f"{self.nodes},{self.depth},{self.width}"

    @classmethod
    def parse(cls, text: str) -> TreeSpec:
        """The tree that ``NODES,DEPTH,WIDTH`` names. Raises ValueError."""
        parts = text.split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"a tree is NODES,DEPTH,WIDTH, three whole numbers such as 8,4,2, not {text!r}")
        return cls(*(int(part) for part in parts))


PLAIN = TreeSpec(1, 0, 0)
