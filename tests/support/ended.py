"""The result of a run of resps-export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a run."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The error line of an expected failure, after the progress lines."""
        lines = [line for line in self.err.splitlines() if line.startswith("resps-export: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(lines[0] + "\n")
        assert " — " in lines[0]
        assert "internal error" not in lines[0]
        assert "Traceback" not in self.err
        return lines[0]
