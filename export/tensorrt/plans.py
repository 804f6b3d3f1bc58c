"""The TensorRT side of an engine directory: a plan of every graph, and of every network of a policy."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from runtime.manifest.graphs import File, Graph
from runtime.manifest.schema import Draft, Limits, TensorRT
from runtime.manifest.tuning import FILE_PREFIX

from .builder import TIMING_CACHE, Progress, build_plan
from .gpu import Platform
from .profiles import all_profiles


def build_plans(
    scratch: Path,
    graphs: Mapping[str, Graph],
    limits: Limits,
    tree_sizes: tuple[int, ...],
    draft: Draft | None,
    platform: Platform,
    timings: Path,
    progress: Progress,
) -> tuple[dict[str, Graph], dict[str, File]]:
    """A plan beside every graph, and the graphs with their plans and profiles. ``timings``: the timing cache of the engine before this one.

    Measurements are kept where kernels are measured: with TensorRT on a GPU. Raises EngineBuildError.
    """
    profiles = all_profiles(limits, tree_sizes, draft)
    cache = None if platform.rtx else scratch / TIMING_CACHE
    if cache and timings.is_file():
        shutil.copyfile(timings, cache)
    built, known = {}, {}
    for name, graph in graphs.items():
        built[name] = dataclasses.replace(graph, plan=f"{name}.plan", profiles=profiles[name])
        known[f"{name}.plan"] = build_plan(scratch, built[name], platform, cache, progress)
    return built, known


def plan_network(directory: Path, graph: Graph, platform: Platform, progress: Progress) -> Graph:
    """A policy's network, all of whose sizes are fixed, with its plan. The plan is named after its own bytes, because two builds of a graph
    need not give the same ones. Raises EngineBuildError."""
    partial = dataclasses.replace(graph, plan="plan.partial", profiles=({},))
    name = f"{FILE_PREFIX}{build_plan(directory, partial, platform, None, progress).sha256[:12]}.plan"
    (directory / "plan.partial").replace(directory / name)
    return dataclasses.replace(partial, plan=name)


def describe(platform: Platform) -> TensorRT:
    """The manifest's entry."""
    gpu = platform.gpu.name if platform.gpu else None
    return TensorRT(platform.flavour, platform.version, platform.capabilities, gpu)
