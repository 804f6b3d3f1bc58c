"""Inputs that a target graph can be run on, for `polygraphy run --data-loader-script scripts/polygraphy_inputs.py`.

Random integers, which polygraphy would feed, are no token ids and no slots. RESPS_ENGINE_DIR names the engine directory:

    export RESPS_ENGINE_DIR=engines/smollm2-135m-trt POLYGRAPHY_USE_TENSORRT_RTX=1
    feed="--data-loader-script scripts/polygraphy_inputs.py"
    polygraphy run $RESPS_ENGINE_DIR/target.onnx --onnxrt $feed --save-outputs expected.json
    polygraphy run $RESPS_ENGINE_DIR/target.plan --model-type engine --trt $feed --load-outputs expected.json --atol 0.1
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtime.backends.base import dtype_of
from runtime.decoding.tree import Tree
from runtime.manifest.load import load_manifest

ROWS, SPAN = 8, 64


def load_data() -> Iterator[dict[str, np.ndarray]]:
    """One chain of random tokens behind an empty cache."""
    manifest = load_manifest(Path(os.environ["RESPS_ENGINE_DIR"]), verify=False)
    tree = Tree.chain(np.random.default_rng(0).integers(0, manifest.shape.vocab, ROWS).tolist())
    sizes = {"n": ROWS, "span": SPAN, "r": ROWS}
    inputs = manifest.graphs["target"].inputs
    shapes = {name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape) for name, tensor in inputs.items()}
    caches = {name: np.zeros(shapes[name], dtype_of(inputs[name].dtype)) for name in inputs if name.startswith("past.")}
    numbers = {"tokens": tree.tokens[None], "depth": tree.depth[None], "past": np.zeros(1, np.int64), "rows": np.arange(ROWS)}
    yield {**numbers, "tree_mask": tree.mask, "slots": np.arange(SPAN), **caches}
