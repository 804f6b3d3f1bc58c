"""Chooses the GPUs that plans are built for: the local one, or the requested compute capabilities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.backends.cuda.tensorrt_module import load

from ..errors import EngineBuildError

# Used on a machine without a GPU. One plan for both is as small as a plan for one of them (307 MB, SmolLM2-135M in fp16).
DEFAULT_CAPABILITIES = ("8.9", "12.0")
RTX = "tensorrt_rtx"


@dataclass(frozen=True)
class BuildGpu:
    """A GPU of this machine. ``capability``: its compute capability, such as "8.9"."""

    name: str
    capability: str


@dataclass(frozen=True)
class Platform:
    """What plans are built with and for. ``trt``: the TensorRT module. ``gpu``: the local GPU, None if there is none."""

    trt: Any
    capabilities: tuple[str, ...]
    gpu: BuildGpu | None

    @property
    def flavour(self) -> str:
        """Name of the TensorRT module."""
        return str(self.trt.__name__)

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which builds without a GPU because it compiles kernels at run time. TensorRT measures kernels
        here."""
        return self.flavour == RTX


def parse_capabilities(text: str) -> tuple[str, ...]:
    """Parse a list such as ``8.9,12.0``, and return it in ascending order. Raises ValueError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d?\.\d", part) for part in parts) or len(set(parts)) != len(parts):
        raise ValueError(f"compute capabilities are different numbers such as 8.9,12.0, not {text!r}")
    return tuple(sorted(parts, key=_number))


def choose_platform(asked: Sequence[str]) -> Platform:
    """``asked``: compute capabilities to build for; if empty, that of the local GPU, else DEFAULT_CAPABILITIES.

    Raises EngineDirError without TensorRT, EngineBuildError if TensorRT needs a GPU and there is none, and ValueError for capabilities that
    it cannot build for.
    """
    trt, gpu = load(), find_gpu()
    if trt.__name__ != RTX:
        if asked:
            raise ValueError(f"--compute-capability needs {RTX}: {trt.__name__} builds for the GPU that it runs on")
        if gpu is None:
            raise EngineBuildError(
                f"{trt.__name__} builds engines only on a machine with a GPU, and this one has none — export on the machine that will run "
                "them, or pip uninstall it and pip install 'resps[rtx]', which needs none"
            )
        return Platform(trt, (gpu.capability,), gpu)
    unknown = [each for each in asked if each not in buildable(trt)]
    if unknown:
        raise ValueError(
            f"{RTX} {trt.__version__} cannot build for compute capability {', '.join(unknown)}, only for {', '.join(buildable(trt))}"
        )
    return Platform(trt, tuple(asked) or ((gpu.capability,) if gpu else DEFAULT_CAPABILITIES), gpu)


def buildable(trt: Any) -> tuple[str, ...]:
    """Compute capabilities that this version of TensorRT-RTX can build for, in ascending order."""
    names = (name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    return tuple(sorted((f"{name[:-1]}.{name[-1]}" for name in names), key=_number))


def find_gpu() -> BuildGpu | None:
    """The first GPU, None without a GPU or driver."""
    try:
        from cuda.bindings import runtime as cuda
    except ImportError:
        return None
    success = cuda.cudaError_t.cudaSuccess
    error, count = cuda.cudaGetDeviceCount()
    if error != success or count == 0:
        return None
    error, properties = cuda.cudaGetDeviceProperties(0)
    if error != success:
        return None
    return BuildGpu(properties.name.decode(errors="replace").rstrip("\0"), f"{properties.major}.{properties.minor}")


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
