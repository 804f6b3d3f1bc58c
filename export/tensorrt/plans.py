"""Builds the TensorRT plans of an engine directory: one for each graph and for each network of a policy."""

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
    lanes: int,
    platform: Platform,
    timings: Path,
    progress: Progress,
) -> tuple[dict[str, Graph], dict[str, File]]:
    """Build a plan for each graph. Returns the manifest's entries of graphs (with plans and profiles) and plan files.

    ``timings``: the timing cache of the engine that this one replaces. TensorRT measures kernels on the GPU and keeps the results in that
    cache; TensorRT-RTX has none. Raises EngineBuildError.
    """
    profiles = all_profiles(limits, tree_sizes, draft, lanes)
    cache = None if platform.rtx else scratch / TIMING_CACHE
    if cache and timings.is_file():
        shutil.copyfile(timings, cache)
    built, known = {}, {}
    for name, graph in graphs.items():
        built[name] = dataclasses.replace(graph, plan=f"{name}.plan", profiles=profiles[name])
        known[f"{name}.plan"] = build_plan(scratch, built[name], platform, cache, progress)
    return built, known


def plan_network(directory: Path, graph: Graph, platform: Platform, progress: Progress) -> Graph:
    """Build the plan of a policy's network, whose shapes are all fixed, and return the graph's entry with it. The plan's name has a hash of
    its own bytes, because two builds of a graph may differ. Raises EngineBuildError."""
    partial = dataclasses.replace(graph, plan="plan.partial", profiles=({},))
    name = f"{FILE_PREFIX}{build_plan(directory, partial, platform, None, progress).sha256[:12]}.plan"
    (directory / "plan.partial").replace(directory / name)
    return dataclasses.replace(partial, plan=name)


def describe(platform: Platform, lanes: int) -> TensorRT:
    """The manifest's entry of the platform and of what the plans are for."""
    gpu = platform.gpu.name if platform.gpu else None
    return TensorRT(platform.flavour, platform.version, platform.capabilities, gpu, lanes)
