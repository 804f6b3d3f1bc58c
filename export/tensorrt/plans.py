"""The TensorRT side of an engine directory: the policy's graph, and a plan of every graph."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx

from runtime.manifest.graphs import File, Graph
from runtime.manifest.schema import Controller, Draft, Limits, TensorRT

from ..graphs.policy_net import action_table, write_policy
from .builder import TIMING_CACHE, Progress, build_plan
from .gpu import Platform
from .profiles import all_profiles

POLICY = "resps"


def add_policy(
    scratch: Path, target: onnx.ModelProto, tree_sizes: tuple[int, ...], draft: Draft
) -> tuple[onnx.ModelProto, dict[str, File], Controller] | None:
    """Write the policy's graph for this target's features; None where there is no tree to choose. Returns it, its weights' file if it has
    one, and the manifest's entry."""
    actions = action_table(tree_sizes, draft)
    if not actions:
        return None
    features = next(value.type.tensor_type for value in target.graph.output if value.name == "features")
    model, known = write_policy(scratch, features.shape.dim[2].dim_value, features.elem_type, len(actions))
    return model, known, Controller(POLICY, trained=False, actions=actions)


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
    profiles = all_profiles(limits, tree_sizes, draft, "policy" in graphs)
    cache = None if platform.rtx else scratch / TIMING_CACHE
    if cache and timings.is_file():
        shutil.copyfile(timings, cache)
    built, known = {}, {}
    for name, graph in graphs.items():
        built[name] = dataclasses.replace(graph, plan=f"{name}.plan", profiles=profiles[name])
        known[f"{name}.plan"] = build_plan(scratch, built[name], platform, cache, progress)
    return built, known


def describe(platform: Platform) -> TensorRT:
    """The manifest's entry."""
    gpu = platform.gpu.name if platform.gpu else None
    return TensorRT(platform.flavour, platform.version, platform.capabilities, gpu)
