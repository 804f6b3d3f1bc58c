"""resps-serve as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def running(engine_dir: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start resps-serve on a free port. Yields the process and its base URL once it listens; kills it at the end. The line that it prints
    then says how many requests run at once. The process has no terminal."""
    line = [sys.executable, "-c", "from runtime.serve.cli import main; main()", "--engine-dir", str(engine_dir), "--port", "0", *arguments]
    with subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stderr is not None
            ready = process.stderr.readline()
            if not re.fullmatch(
                r"resps-serve: \S+, .*lanes?, up to \d+ MiB of cache( each)?(, \d+ MiB of past answers)?, at http://\S+\n", ready
            ):
                process.kill()
                raise AssertionError(ready + process.stderr.read())
            yield process, ready.split()[-1]
        finally:
            process.kill()
