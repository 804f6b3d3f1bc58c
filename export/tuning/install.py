"""Writes what was tuned into an engine directory: networks first, then the manifest that names them, whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from runtime.manifest.graphs import FILE_NAME, File, Graph, Tensor, sha256_of
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from runtime.manifest.tuning import FILE_PREFIX

from ..directory.install import scratch_directory
from ..tensorrt.gpu import Platform
from ..tensorrt.plans import plan_network
from .errors import TuningError
from .learning.nets import Mlp, graph
from .learning.trained import Trained, graph_name
from .outcome import Tuned

AGREEMENT = 1e-4  # largest difference of a logit between training's network and the graph


def install(directory: Path, expected: Manifest, tuned: Tuned) -> Manifest:
    """Replace the manifest by one with the tuning, and return it. Raises TuningError when the engine was exported anew meanwhile, or a
    network's graph computes something else than the network."""
    manifest = load_manifest(directory, verify=False, tuned=False)
    if manifest != dataclasses.replace(expected, tuning=None):
        raise TuningError(f"{directory} was exported anew while it was tuned — tune again")
    with scratch_directory(directory / "tuning") as scratch:
        graphs = _written(scratch, tuned.learned, _platform(manifest))
        files = {path.name: File(sha256_of(path), path.stat().st_size) for path in sorted(scratch.iterdir())}
        tuning = dataclasses.replace(tuned.tuning, graphs=graphs, files=files)
        installed = dataclasses.replace(manifest, tuning=tuning)
        (scratch / FILE_NAME).write_text(installed.to_json(), encoding="utf-8")
        for name in files:  # their names say what is in them: none replaces one that the old manifest means
            (scratch / name).replace(directory / name)
        with (scratch / FILE_NAME).open("rb") as file:
            os.fsync(file.fileno())
        (scratch / FILE_NAME).replace(directory / FILE_NAME)
    for old in directory.glob(f"{FILE_PREFIX}*"):
        if old.name not in files:
            old.unlink(missing_ok=True)
    return installed


def _platform(manifest: Manifest) -> Platform | None:
    """What the engine's plans were built with and for, for the networks' plans too."""
    built = manifest.tensorrt
    if built is None:
        return None
    from runtime.backends.cuda.tensorrt_module import load

    from ..tensorrt.gpu import find_gpu

    return Platform(load(built.flavour), built.compute_capabilities, find_gpu())


def _written(scratch: Path, learned: Mapping[str, Trained], platform: Platform | None) -> dict[str, Graph]:
    """Every network's graph, and its plan for ``platform``, in files named after their contents: policies share them."""
    graphs: dict[str, Graph] = {}
    saved: dict[str, Graph] = {}  # by file
    for policy, trained in learned.items():
        for role, net in trained.nets():
            name = graph_name(policy, role)
            graph = _saved(scratch, name, net)
            if graph.file not in saved:
                saved[graph.file] = plan_network(scratch, graph, platform, lambda *_: None) if platform else graph
            graphs[name] = saved[graph.file]
    return graphs


def _saved(scratch: Path, name: str, net: Mlp) -> Graph:
    model = graph(net)
    onnx.checker.check_model(model)
    _check(model, name, net)
    partial = scratch / "net.partial"
    onnx.save(model, partial)
    file = f"{FILE_PREFIX}{sha256_of(partial)[:12]}.onnx"
    partial.replace(scratch / file)
    inputs, outputs = {"x": Tensor("float32", (1, net.inputs))}, {"logits": Tensor("float32", (1, net.actions))}
    return Graph(file, None, (), inputs, outputs)


def _check(model: onnx.ModelProto, name: str, net: Mlp) -> None:
    """The graph in ONNX Runtime against training's arithmetic, on a few random states."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for state in np.random.default_rng(0).standard_normal((4, 1, net.inputs)).astype(np.float32):
        (logits,) = session.run(None, {"x": state})
        if not np.allclose(logits, net(state), atol=AGREEMENT, rtol=AGREEMENT):
            raise TuningError(f"the graph of {name} differs from the trained network — please report it")
