"""Builds a TensorRT plan from an ONNX graph and its optimization profiles, and writes it to a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from runtime.backends.cuda.tensorrt_module import logger
from runtime.manifest.graphs import File, Graph

from ..errors import EngineBuildError
from .gpu import Platform

Progress = Callable[[str, int, int], None]
"""(stage, done, total)"""
TIMING_CACHE = "timing.cache"
"""File with the kernel timings measured by a build on a GPU, reused by the next build."""


@dataclass(frozen=True)
class Parsed:
    """A parsed network, and the objects that must live as long as it does."""

    builder: Any
    network: Any
    parser: Any


def parse_graph(trt: Any, file: Path) -> Parsed:
    """Parse an ONNX file. Attention in float32 may be decomposed, because it has no fused kernel. Raises EngineBuildError."""
    log = logger(trt)
    log.messages.clear()
    builder = trt.Builder(log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # newer versions are always strongly typed
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(file)):
        said = [_at(parser.get_error(index)) for index in range(parser.num_errors)] or list(log.messages)
        raise EngineBuildError(f"{trt.__name__} {trt.__version__} cannot read {file.name}: {_first(said)} — {_REMEDY}")
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT and layer.get_input(0).dtype == trt.float32:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    return Parsed(builder, network, parser)


def build_plan(directory: Path, graph: Graph, platform: Platform, timings: Path | None, progress: Progress) -> File:
    """Build ``graph.plan`` from ``graph.file``, both in ``directory``, with ``graph.profiles``. ``timings``: file of the timing cache.

    Raises EngineBuildError, and any exception that ``progress`` raises.
    """
    assert graph.plan is not None
    trt = platform.trt
    parsed = parse_graph(trt, directory / graph.file)
    _expect_tensors(parsed.network, graph)
    config = parsed.builder.create_builder_config()
    for profile in graph.profiles:
        config.add_optimization_profile(_profile(parsed, graph, profile))
    _choose_gpus(platform, config)
    cache = _open_timings(config, timings) if timings else None
    errors = _CallbackErrors()
    config.progress_monitor = _monitor(trt, Path(graph.file).stem, progress, errors)
    with (directory / graph.plan).open("wb") as file:
        writer = _writer(trt, file, errors)
        done = parsed.builder.build_serialized_network_to_stream(parsed.network, config, writer)
    errors.check()
    if not done:
        said = _first(list(logger(trt).messages))
        raise EngineBuildError(f"{platform.flavour} {platform.version} cannot build {graph.file}: {said} — {_REMEDY}")
    if timings and cache:
        timings.write_bytes(bytes(cache.serialize()))
    return File(writer.digest.hexdigest(), writer.size)


def _expect_tensors(network: Any, graph: Graph) -> None:
    """Check that the network has the tensors of the manifest, because the runtime binds those. Raises EngineBuildError."""
    sides = (
        ("input", graph.inputs, [network.get_input(index) for index in range(network.num_inputs)]),
        ("output", graph.outputs, [network.get_output(index) for index in range(network.num_outputs)]),
    )
    for side, stated, tensors in sides:
        found = {tensor.name: tuple(tensor.shape) for tensor in tensors}
        strange = found.keys() ^ stated.keys() or {name for name, tensor in stated.items() if not _is_form_of(found[name], tensor.shape)}
        if strange:
            raise EngineBuildError(f"TensorRT reads {graph.file} with another {side} {min(strange)} than was written — please report it")


def _is_form_of(found: tuple[int, ...], stated: tuple[int | str, ...]) -> bool:
    """Whether the shapes agree where both are known; TensorRT writes -1 for an unknown size."""
    return len(found) == len(stated) and all(isinstance(b, str) or a in (-1, b) for a, b in zip(found, stated, strict=True))


_REMEDY = "choose another --precision, or run again with -v and report what it says"


def _at(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{where}: {error.desc()}" if where else str(error.desc())


def _first(messages: list[str]) -> str:
    return " ".join(messages[0].split()) if messages else "it gives no reason"


def _profile(parsed: Parsed, graph: Graph, sizes: Mapping[str, tuple[int, int, int]]) -> Any:
    """TensorRT's profile: smallest, optimal and largest shape of every input with a variable size."""
    profile = parsed.builder.create_optimization_profile()
    for name, tensor in graph.inputs.items():
        if any(isinstance(dim, str) for dim in tensor.shape):
            profile.set_shape(name, *(tuple(sizes[dim][i] if isinstance(dim, str) else dim for dim in tensor.shape) for i in range(3)))
    return profile


def _choose_gpus(platform: Platform, config: Any) -> None:
    """Select the GPUs to build for; only TensorRT-RTX can. The local GPU is used if TensorRT-RTX has no name for its capability."""
    if not platform.rtx:
        return
    kinds, config.num_compute_capabilities = platform.trt.ComputeCapability, len(platform.capabilities)
    for index, capability in enumerate(platform.capabilities):
        config.set_compute_capability(getattr(kinds, f"SM{capability.replace('.', '')}", kinds.CURRENT), index)


def _open_timings(config: Any, file: Path) -> Any:
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


class _CallbackErrors:
    """Runs callbacks and stores the first exception, because it must not propagate through the builder. The builder is told to stop."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def run(self, action: Callable[[], object]) -> bool:
        """Run the callback. Returns False if the build is to stop."""
        try:
            if self.error is None:
                action()
        except BaseException as error:
            self.error = error
        return self.error is None

    def check(self) -> None:
        """Raise the stored exception."""
        if self.error is not None:
            raise self.error


def _monitor(trt: Any, name: str, progress: Progress, errors: _CallbackErrors) -> Any:
    """A progress monitor that reports the outermost phases. One of them takes nearly the whole time."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            steps = self.steps.get(phase, 0)
            return errors.run(lambda: progress(f"{name}.plan", step + 1, steps) if step + 1 < steps else None)

        def phase_finish(self, phase: str) -> None:
            if steps := self.steps.pop(phase, 0):
                errors.run(lambda: progress(f"{name}.plan", steps, steps))

    return Monitor()


def _writer(trt: Any, file: BinaryIO, errors: _CallbackErrors) -> Any:
    """A stream writer that writes to ``file``, hashes and counts the bytes."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.digest, self.size = hashlib.sha256(), 0

        def write(self, data: bytes) -> int:
            return len(data) if errors.run(lambda: self._append(data)) else 0

        def _append(self, data: bytes) -> None:
            file.write(data)
            self.digest.update(data)
            self.size += len(data)

    return Writer()
