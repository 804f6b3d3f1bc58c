"""Installs a tuning in an engine directory: first the networks' files, then, by an atomic rename, the manifest that names them."""

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

from ..directory.owned import is_tuned
from ..directory.scratch import scratch_directory
from ..tensorrt.gpu import Platform
from ..tensorrt.plans import plan_network
from .errors import TuningError
from .learning.nets import Mlp, mlp_graph
from .learning.trained import TrainedPolicy, graph_name
from .outcome import TuningResult

MAX_LOGIT_DIFF = 1e-4  # largest difference between a trained network and its graph


def expect_installable(directory: Path) -> None:
    """Check, before a long tuning, that it can be installed. Raises TuningError if ``directory`` may not be written."""
    if not os.access(directory, os.W_OK):
        raise TuningError(f"cannot write to {directory}: no permission — copy the engine directory, or tune with --dry-run")


def install(directory: Path, expected: Manifest, result: TuningResult) -> Manifest:
    """Replace the manifest in ``directory`` by one with the tuning, and return it.

    ``expected``: the manifest that was tuned. Raises TuningError if the directory now has another one, or if a network's graph does not
    compute what the network does.
    """
    manifest = load_manifest(directory, verify=False, tuned=False)
    if manifest != dataclasses.replace(expected, tuning=None):
        raise TuningError(f"{directory} was exported again while it was tuned — tune again")
    with scratch_directory(directory / "tuning") as scratch:
        graphs = _write_graphs(scratch, result.learned, _platform(manifest))
        files = {path.name: File(sha256_of(path), path.stat().st_size) for path in sorted(scratch.iterdir())}
        tuning = dataclasses.replace(result.tuning, graphs=graphs, files=files)
        installed = dataclasses.replace(manifest, tuning=tuning)
        (scratch / FILE_NAME).write_text(installed.to_json(), encoding="utf-8")
        for name in files:  # file names contain the content's hash, so none overwrites a different file of the old manifest
            (scratch / name).replace(directory / name)
        with (scratch / FILE_NAME).open("rb") as file:
            os.fsync(file.fileno())
        (scratch / FILE_NAME).replace(directory / FILE_NAME)
    for old in directory.glob(f"{FILE_PREFIX}*"):
        if is_tuned(old.name) and old.name not in files:
            old.unlink(missing_ok=True)
    return installed


def _platform(manifest: Manifest) -> Platform | None:
    """The platform that the engine's TensorRT plans were built for; the networks' plans are built for the same. None without plans."""
    built = manifest.tensorrt
    if built is None:
        return None
    from runtime.backends.cuda.tensorrt_module import load

    from ..tensorrt.gpu import find_gpu

    return Platform(load(built.flavour), built.compute_capabilities, find_gpu())


def _write_graphs(scratch: Path, learned: Mapping[str, TrainedPolicy], platform: Platform | None) -> dict[str, Graph]:
    """Write every network's graph, and its plan if there is a ``platform``. Files are named by content, so that policies with the same
    network share its file."""
    graphs: dict[str, Graph] = {}
    by_file: dict[str, Graph] = {}
    for policy, trained in learned.items():
        for role, net in trained.nets():
            name = graph_name(policy, role)
            graph = _write_graph(scratch, name, net)
            if graph.file not in by_file:
                by_file[graph.file] = plan_network(scratch, graph, platform, lambda *_: None) if platform else graph
            graphs[name] = by_file[graph.file]
    return graphs


def _write_graph(scratch: Path, name: str, net: Mlp) -> Graph:
    model = mlp_graph(net)
    onnx.checker.check_model(model)
    _check(model, name, net)
    partial = scratch / "net.partial"
    onnx.save(model, partial)
    file = f"{FILE_PREFIX}{sha256_of(partial)[:12]}.onnx"
    partial.replace(scratch / file)
    inputs, outputs = {"x": Tensor("float32", (1, net.inputs))}, {"logits": Tensor("float32", (1, net.actions))}
    return Graph(file, None, (), inputs, outputs)


def _check(model: onnx.ModelProto, name: str, net: Mlp) -> None:
    """Compare the graph in ONNX Runtime with the numpy network on a few random inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for state in np.random.default_rng(0).standard_normal((4, 1, net.inputs)).astype(np.float32):
        (logits,) = session.run(None, {"x": state})
        with np.errstate(invalid="ignore"):  # numpy's product warned here once, not when repeated; the comparison finds NaN
            expected = net(state)
        if not np.allclose(logits, expected, atol=MAX_LOGIT_DIFF, rtol=MAX_LOGIT_DIFF):
            raise TuningError(f"the graph of {name} differs from the trained network — please report it")
