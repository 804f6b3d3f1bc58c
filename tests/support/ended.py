"""How a run of resps-export ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of an expected failure; progress lines come before it."""
        lines = [line for line in self.err.splitlines() if line.startswith("resps-export: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(lines[0] + "\n")
        assert " — " in lines[0]
        assert "internal error" not in lines[0]
        assert "Traceback" not in self.err
        return lines[0]
