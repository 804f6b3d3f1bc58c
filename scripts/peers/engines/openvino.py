"""openvino-genai. Options: model; exact: float32 arithmetic and cache, else the plugin's defaults; draft: an EAGLE-3 draft, if any;
generation: its settings (num_assistant_tokens, tree_depth, branching_factor); lookup: number of tokens for prompt lookup, if any;
whole_prompt: prefill up to 4,096 tokens in one pass instead of 256, without which trees fail on longer prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.peers.protocol import PeerAnswer, PeerJob, Stopwatch

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


class OpenVino:
    def __init__(self, job: PeerJob) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._openvino, self._genai, self._stop = numpy, openvino, openvino_genai, job.stop
        self._model = Path(job.options["model"])
        self._generation = dict(job.options.get("generation") or {})
        self._properties = {"INFERENCE_NUM_THREADS": job.threads, **(EXACT if job.options.get("exact") else {})}
        if job.answers is not None:
            self._compiled = openvino.Core().compile_model(self._model / "openvino_model.xml", "CPU", self._properties)
            return
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.enable_prefix_caching = False
        if job.options.get("whole_prompt"):
            scheduling.max_num_batched_tokens = 4096
        extra: dict[str, Any] = {}
        if job.options.get("draft"):
            extra["draft_model"] = openvino_genai.draft_model(job.options["draft"], "CPU", **self._properties)
        if job.options.get("lookup"):
            extra["prompt_lookup"] = True
            self._generation |= {"num_assistant_tokens": job.options["lookup"], "max_ngram_size": 3}
        self._pipeline = openvino_genai.LLMPipeline(self._model, "CPU", scheduler_config=scheduling, **self._properties, **extra)

        class OpenVinoStreamer(openvino_genai.StreamerBase):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.stopwatch = Stopwatch()

            def write(self, token: int | list[int]) -> Any:
                self.stopwatch.saw([token] if isinstance(token, int) else list(token))
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        self._streamer = OpenVinoStreamer

    def answer(self, prompt: list[int], new_tokens: int) -> PeerAnswer:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.apply_chat_template = new_tokens, False, False
        config.eos_token_id, config.stop_token_ids = self._stop[0], set(self._stop)
        for name, value in self._generation.items():
            setattr(config, name, value)
        streamer = self._streamer()
        self._pipeline.generate(self._openvino.Tensor(self._numpy.array([prompt], self._numpy.int64)), config, streamer)
        return streamer.stopwatch.answer(self._stop)

    def logits(self, tokens: list[int], start: int) -> Any:
        """Of the same model file outside of the pipeline, which does not return logits."""
        numpy, count = self._numpy, len(tokens)
        inputs = {
            "input_ids": numpy.array([tokens], numpy.int64),
            "attention_mask": numpy.ones((1, count), numpy.int64),
            "position_ids": numpy.arange(count, dtype=numpy.int64)[None],
            "beam_idx": numpy.zeros(1, numpy.int32),
        }
        return self._compiled.create_infer_request().infer(inputs)["logits"][0, start:]


def open_engine(job: PeerJob) -> OpenVino:
    return OpenVino(job)
