"""A virtual environment for each engine: they need different versions of the same packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import RespsError

TORCH = "torch==2.13.0"


class PeerUnavailable(RespsError):
    """An engine cannot be installed, given the model, or run here. The table says why, and the others go on."""


@dataclass(frozen=True)
class Environment:
    """``pins``: packages with versions; ``unwanted``: dependencies to remove again; ``variables``: environment variables for builds."""

    pins: Sequence[str]
    unwanted: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        return json.dumps([list(self.pins), list(self.unwanted), dict(self.variables)])


ENVIRONMENTS = {
    "transformers": Environment((TORCH, "transformers==5.23.0", "safetensors==0.8.0")),
    "onnxruntime-genai": Environment(
        (TORCH, "transformers==5.23.0", "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0")
    ),
    # No wheel on the index: compiles llama.cpp for this processor, some 20 minutes of two cores.
    "llama-cpp-python": Environment(("llama-cpp-python==0.3.36",), variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"}),
    # llama.cpp's HTTP server, built for AVX2. Both are for through_http.py
    "xllamacpp": Environment(("xllamacpp==2026.10.11549",)),
    "aiperf": Environment(("aiperf==0.13.0",)),
    "openvino": Environment(
        (TORCH, "transformers==5.5.4", "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0"),
        unwanted=("torchvision",),  # built for CUDA's torch: importing it beside the CPU's fails
    ),
}


def python_of(work: Path, name: str) -> Path:
    """The interpreter of environment ``name``, which is made if it is missing or has other pins. Raises PeerUnavailable."""
    environment, directory = ENVIRONMENTS[name], work / "venvs" / name
    python, mark = directory / "bin" / "python", directory / "installed.json"
    if mark.is_file() and mark.read_text() == environment.mark:
        return python
    if not python.is_file():
        _run([sys.executable, "-m", "venv", str(directory)], f"cannot make a virtual environment for {name}")
    pip, variables = [str(python), "-m", "pip"], {**os.environ, **environment.variables}
    if environment.pins[0] == TORCH:  # before gigabytes are downloaded
        plan = [*pip, "install", "--quiet", "--dry-run", "--report", "-", TORCH]
        refuse_cuda(_run(plan, f"cannot find {TORCH}", variables))
    _run(["nice", "-n", "19", *pip, "install", "--quiet", *environment.pins], f"cannot install {name}", variables)
    if environment.unwanted:
        _run([*pip, "uninstall", "--quiet", "--yes", *environment.unwanted], f"cannot trim {name}", variables)
    mark.write_text(environment.mark)
    return python


def refuse_cuda(report: str) -> None:
    """``report``: pip's dry run as JSON. Raises PeerUnavailable if it would install NVIDIA's libraries."""
    names = [item["metadata"]["name"] for item in json.loads(report[report.index("{") :])["install"]]
    if any(name.lower().startswith("nvidia-") for name in names):
        raise PeerUnavailable(f"{TORCH} would come with CUDA — offer pip its CPU build (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL)")


def _run(command: Sequence[str], what: str, variables: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=None if variables is None else dict(variables))
    if done.returncode != 0:
        raise PeerUnavailable(f"{what}: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """The last non-empty line, for a message. OpenVINO's [ERROR] lines follow the exception, about what it left behind."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("[ERROR]")]
    return lines[-1][:300] if lines else "no reason given"
