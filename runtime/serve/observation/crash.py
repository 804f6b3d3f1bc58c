"""Reports of failed engines that can be sent on: versions, the engine's hash, what the lanes did. No prompts, no answers, no keys."""

from __future__ import annotations

import json
import platform
import resource
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

from ...errors import EngineFailure
from ..errors import LOG
from ..replica import Replica, RunningRequest
from .json_lines import JsonLines

PACKAGES = ("resps", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu13", "tensorrt-rtx", "numpy", "tokenizers", "starlette", "uvicorn")


class CrashReports:
    """Writes a line of JSON for each request that an engine failed at, to ``file`` or else to the log. Raises ServeError if the file cannot
    be opened."""

    def __init__(self, file: Path | None) -> None:
        self._lines = None if file is None else JsonLines(file)

    def write(self, replicas: Sequence[Replica], failed: Replica, request: RunningRequest, error: BaseException) -> None:
        """Report that ``failed`` could not answer ``request`` because of ``error``."""
        report = crash_report(replicas, failed, request, error)
        if self._lines is None:
            LOG.error("crash report: %s", json.dumps(report))
        else:
            self._lines.write(report)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()


def crash_report(replicas: Sequence[Replica], failed: Replica, request: RunningRequest, error: BaseException) -> dict[str, Any]:
    """The report as plain values. Only an EngineFailure's message is kept: it is ours and quotes no prompt."""
    ours = error if isinstance(error, EngineFailure) else None
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "error": type(error).__name__,
        "stage": ours.stage if ours else None,
        "message": str(ours) if ours else None,
        "frames": [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in frames],
        "engine": failed.decoder.manifest.engine_id,
        "replica": replicas.index(failed) if failed in replicas else None,
        "request": {"body_sha256": request.turn.digest.hex(), **_lane(request)},
        "lanes": [[_lane(each) for each in replica.running] for replica in replicas],
        "versions": versions(),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def _lane(request: RunningRequest) -> dict[str, Any]:
    params = request.generation.params
    return {
        "prompt_tokens": len(request.prompt),
        "answer_tokens": len(request.tokens),
        "seconds": round(monotonic() - request.began, 3),
        "policy": request.generation.policy,
        "temperature": params.temperature,
        "constrained": params.constraint is not None,
        "logprobs": params.logprobs,
    }


def versions() -> dict[str, str]:
    """Of this project, Python, the system and the packages that compute."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()} {platform.machine()}"}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
