"""A host sampler that draws by the sample graph's inverse CDF, as devices do, so that both can be compared token for token."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime

from export.graphs.sample import build_sample
from runtime.decoding.sampling import TargetOutput, uniforms
from runtime.sampling_params import SamplingParams

POSITIONS = 1024


@cache
def _session(vocab: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(build_sample(vocab).SerializeToString(), options, providers=["CPUExecutionProvider"])


class DeviceDraws:
    """Replaces GumbelMaxSampler."""

    def __init__(self, sampling: SamplingParams, scratch: np.ndarray) -> None:
        self._inputs = {
            "temperature": np.array([sampling.temperature], np.float32),
            "top_k": np.array([sampling.top_k]),
            "top_p": np.array([sampling.top_p], np.float32),
            "uniforms": uniforms(sampling.seed, POSITIONS),
            "depth": np.zeros((1, 1), np.int64),
        }

    def __call__(self, output: TargetOutput, row: int, position: int) -> int:
        logits = output.logits[row]
        feeds = {**self._inputs, "logits": logits[None, None], "past": np.array([position - 1])}
        return int(_session(len(logits)).run(None, feeds)[0][0, 0])
