"""onnxruntime-genai. Options: model."""

from __future__ import annotations

import json
from typing import Any

from scripts.peers.protocol import PeerAnswer, PeerJob, Stopwatch


class Genai:
    def __init__(self, job: PeerJob) -> None:
        import onnxruntime_genai

        self._module, self._stop = onnxruntime_genai, job.stop
        config = onnxruntime_genai.Config(job.options["model"])
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": job.threads}}}}))
        self._model = onnxruntime_genai.Model(config)

    def answer(self, prompt: list[int], new_tokens: int) -> PeerAnswer:
        params = self._module.GeneratorParams(self._model)
        params.set_search_options(max_length=len(prompt) + new_tokens, do_sample=False)
        stopwatch = Stopwatch()
        generator = self._module.Generator(self._model, params)
        generator.append_tokens([prompt])
        while not generator.is_done():
            generator.generate_next_token()
            stopwatch.saw([int(generator.get_next_tokens()[0])])
        return stopwatch.answer(self._stop)

    def logits(self, tokens: list[int], start: int) -> Any:
        params = self._module.GeneratorParams(self._model)
        params.set_search_options(max_length=len(tokens) + 1)
        generator = self._module.Generator(self._model, params)
        generator.append_tokens([tokens])
        return generator.get_output("logits")[0, start:]


def open_engine(job: PeerJob) -> Genai:
    return Genai(job)
