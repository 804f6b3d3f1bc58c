"""Describes the machine, the installed versions and the engine of a run."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..backends.cpu.processor import processor_name, usable_cores, usable_memory
from ..decoder import Decoder
from ..drafters.registry import DRAFTERS
from .record import EngineRecord, Machine

PACKAGES = ("resps", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu13", "tensorrt-rtx")


def this_machine() -> Machine:
    """Call it after measuring: it holds the peak memory up to now."""
    return Machine(processor_name(), usable_cores(), usable_memory(), _peak(), f"{platform.system()} {platform.release()}", _versions())


def engine_of(decoders: Sequence[Decoder]) -> EngineRecord:
    """``decoders``: of one engine directory, one per draft."""
    first, drafts = decoders[0], tuple(decoder.draft for decoder in decoders)
    manifest = first.manifest
    draft = manifest.draft if any(DRAFTERS[decoder.draft].uses_draft_model for decoder in decoders) else None
    name, precision = (draft.name, draft.precision) if draft else (None, None)
    return EngineRecord(manifest.engine_id, manifest.model, manifest.precision, first.backend, first.device, drafts, name, precision)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _peak() -> int | None:
    """Bytes. On Linux from /proc, because getrusage also counts what the parent process held before it started this one."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
