"""Made-up tunings with random networks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from export.tuning.learning.nets import Mlp
from export.tuning.learning.trained import TrainedPolicy
from export.tuning.outcome import TuningResult
from export.tuning.tune import Split
from policy import Calibration, LatencyModel
from runtime.backends.cpu.processor import processor_name
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.manifest.tuning import Tuning

LATENCY = LatencyModel((1, 8), (100, 1000), ((10.0, 17.0), (20.0, 34.0)), (1, 3), (1, 4), ((1.0, 4.0), (2.0, 8.0)), 0.5)
CALIBRATION = Calibration(1.0, 0.0, 0.5, 0.5, 0.08, (9, 4, 2))


def net(inputs: int, actions: int, seed: int = 0) -> Mlp:
    random = np.random.default_rng(seed)
    sizes = (inputs, 5, actions)
    layers = [(random.standard_normal((b, a)), random.standard_normal(b)) for a, b in pairwise(sizes)]
    return Mlp(tuple((weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in layers), "relu")


def a_tuning(directory: Path, learned: dict[str, TrainedPolicy] | None = None, **changes: Any) -> TuningResult:
    learned = learned or {}
    tuning = Tuning(
        engine=load_manifest(directory).engine_id,
        machine=processor_name(),
        threads=2,
        portable=False,
        policy="cost-model",
        static=(5, 3, 2),
        cost_model=CALIBRATION,
        latency=LATENCY,
        learned={name: trained.manifest_entry(name) for name, trained in learned.items()},
        ratios={"none": 1.0},
        graphs={},
        files={},
    )
    return TuningResult(dataclasses.replace(tuning, **changes), learned, {}, (), Split([], [], []))


SLOW = TrainedPolicy(slow=net(192, 3), actions=((1, 0, 0), (4, 3, 2), (9, 2, 3)))
FAST = TrainedPolicy(depth=net(4, 2), size=net(12, 3, 1), tree=(9, 3, 2), sizes=(1, 4, 9))


def edit_tuning(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tuning in a manifest file, in place."""
    file = directory / FILE_NAME
    manifest = json.loads(file.read_text())
    change(manifest["tuning"])
    file.write_text(json.dumps(manifest))
