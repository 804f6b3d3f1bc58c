"""Opens the backend for an engine directory, a backend name and a device."""

from __future__ import annotations

from pathlib import Path

from ..errors import EngineDirError
from ..manifest.schema import Manifest
from .base import Backend


def open_backend(directory: Path, manifest: Manifest, name: str, device: str, threads: int, lanes: int = 1) -> Backend:
    """The backend ``name`` (onnxruntime or tensorrt) on ``device`` (cpu or cuda), with memory for ``lanes`` requests at a time. Raises
    EngineDirError if the directory cannot run there."""
    if name == "tensorrt" and (manifest.tensorrt is None or device == "cpu"):
        if manifest.tensorrt is not None:
            raise EngineDirError(f"{directory} holds TensorRT plans, which need a GPU — leave --device cpu out, or export for the CPU")
        raise EngineDirError(f"{directory} has no TensorRT plans — make some: resps-export --backend tensorrt, or leave --backend out")
    if device == "cpu":
        from .cpu.backend import CpuBackend

        return CpuBackend(directory, manifest, threads)
    from .cuda.backend import CudaBackend

    return CudaBackend(directory, manifest, with_plans=name == "tensorrt", lanes=lanes)
