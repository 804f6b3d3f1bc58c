"""openvino-genai's continuous batching. Options: model; exact; draft; generation; whole_prompt, all as in openvino.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.peers.engines.openvino import EXACT
from scripts.peers.protocol import PeerJob


class OpenVinoBatch:
    def __init__(self, job: PeerJob) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._openvino, self._genai, self._stop = numpy, openvino, openvino_genai, job.stop
        self._generation = dict(job.options.get("generation") or {})
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads, **(EXACT if job.options.get("exact") else {})}
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.enable_prefix_caching = False
        if job.options.get("whole_prompt"):
            scheduling.max_num_batched_tokens = 4096
        drafting = dict(properties)
        if job.options.get("draft"):
            properties["draft_model"] = openvino_genai.draft_model(job.options["draft"], "CPU", **drafting)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(Path(job.options["model"]), scheduling, "CPU", properties)
        self._handles: dict[int, Any] = {}
        self._started = 0

    def forget(self) -> None:
        """Its prefix cache is off."""

    def add(self, number: int, prompt: list[int], new_tokens: int) -> None:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.apply_chat_template = new_tokens, False, False
        config.eos_token_id, config.stop_token_ids = self._stop[0], set(self._stop)
        for name, value in self._generation.items():
            setattr(config, name, value)
        self._started += 1  # the pipeline's ids must not come twice
        tokens = self._openvino.Tensor(self._numpy.array([prompt], self._numpy.int64))
        self._handles[number] = self._pipeline.add_request(self._started, tokens, config)

    def step(self) -> list[tuple[int, list[int], bool]]:
        self._pipeline.step()
        came = []
        for number, handle in list(self._handles.items()):
            tokens: list[int] = []
            while handle.can_read():
                tokens += [token for output in handle.read().values() for token in output.generated_ids]
            ended = handle.get_status() != self._genai.GenerationStatus.RUNNING
            if tokens or ended:
                came.append((number, tokens, ended))
            if ended:
                del self._handles[number]
        return came


def open_engine(job: PeerJob) -> OpenVinoBatch:
    return OpenVinoBatch(job)
