"""A tuning read from disk. It is checked and copied into a new engine directory; for TensorRT its plans are built too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from runtime.manifest.graphs import File, Graph, sha256_of
from runtime.manifest.tuning import FILE_PREFIX, Tuning
from runtime.manifest.tuning_fit import PolicyLimits, misfit

from ..errors import ExportError
from ..parity.policy_net import check_network
from ..tensorrt.builder import Progress
from ..tensorrt.gpu import Platform
from ..tensorrt.plans import plan_network


@dataclasses.dataclass(frozen=True)
class FoundTuning:
    """``file``: the JSON file it was read from; the networks are in the same folder. ``draft``: hash of the weights of the draft that was
    tuned."""

    file: Path
    tuning: Tuning
    draft: str

    @property
    def networks(self) -> list[str]:
        """Names of the networks' ONNX files."""
        return sorted({graph.file for graph in self.tuning.graphs.values()})

    @property
    def bytes(self) -> int:
        """Total size of the networks' ONNX files in bytes."""
        return sum(self.tuning.files[name].bytes for name in self.networks)

    @property
    def digest(self) -> str:
        """Short hash of the tuning; it includes the hashes of the networks."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self.tuning), sort_keys=True).encode()).hexdigest()[:16]

    def problem(self, draft: str | None, limits: PolicyLimits) -> str | None:
        """Why the tuning cannot be used, None if it can. ``draft``: hash of the draft's weights, None for any draft."""
        if not self.tuning.reads_known_inputs:
            return "it was tuned with other policy inputs"
        if draft is not None and draft != self.draft:
            return "it was tuned with another draft"
        return misfit(self.tuning, limits)

    def expect_whole(self) -> None:
        """Raises ExportError if a network's file is missing or changed."""
        for name in self.networks:
            if name not in self.tuning.files or not is_whole(self.file.parent, name, self.tuning.files[name]):
                raise ExportError(f"{self.file.parent / name} is missing or changed — copy the whole folder again, or tune again")


def is_whole(folder: Path, name: str, expected: File) -> bool:
    """Whether the file ``name`` is directly in ``folder`` and has the expected hash and size."""
    path = folder / name
    return name == path.name and path.is_file() and File(sha256_of(path), path.stat().st_size) == expected


def adopt(found: FoundTuning, engine_id: str, scratch: Path, platform: Platform | None, progress: Progress) -> Tuning:
    """Copy a tuning to a new engine: check its networks, copy them to ``scratch`` under names made from their hashes, and build their plans
    if there is a ``platform``. Returns the manifest's entry. Raises ParityError and EngineBuildError."""
    made: dict[str, Graph] = {}  # by file: policies may share a network
    for graph in found.tuning.graphs.values():
        if graph.file not in made:
            source = found.file.parent / graph.file
            check_network(source, graph)
            name = f"{FILE_PREFIX}{sha256_of(source)[:12]}.onnx"
            shutil.copyfile(source, scratch / name)
            copied = Graph(name, None, (), graph.inputs, graph.outputs)
            made[graph.file] = plan_network(scratch, copied, platform, progress) if platform else copied
    names = {name for graph in made.values() for name in (graph.file, graph.plan) if name}
    return dataclasses.replace(
        found.tuning,
        engine=engine_id,
        portable=True,
        graphs={name: made[graph.file] for name, graph in found.tuning.graphs.items()},
        files={name: File(sha256_of(scratch / name), (scratch / name).stat().st_size) for name in sorted(names)},
    )
