"""llama.cpp, by the Llama class of llama-cpp-python. Options: model: a GGUF file; f32: cache and attention in float32; lookup: number of
tokens for prompt lookup, if any; repack: false disables kernels that reorder the weights (AMX)."""

from __future__ import annotations

from typing import Any

from scripts.peers.protocol import PeerAnswer, PeerJob, Stopwatch

CONTEXT = 4096


class LlamaCpp:
    def __init__(self, job: PeerJob) -> None:
        import llama_cpp

        if not job.options.get("repack", True):
            _without_repacking()
        options: dict[str, Any] = {}
        if job.options.get("f32"):
            options = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        if job.options.get("lookup"):
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            options["draft_model"] = LlamaPromptLookupDecoding(num_pred_tokens=job.options["lookup"])
        self._llama = llama_cpp.Llama(
            job.options["model"],
            n_ctx=CONTEXT,
            n_threads=job.threads,
            n_threads_batch=job.threads,
            logits_all=job.answers is not None or "draft_model" in options,
            verbose=False,
            **options,
        )
        self._stop = job.stop

    def _forget(self) -> None:
        """Drop the cache, which would keep the common prefix of two prompts."""
        self._llama.reset()
        self._llama._ctx.kv_cache_clear()

    def answer(self, prompt: list[int], new_tokens: int) -> PeerAnswer:
        self._forget()
        stopwatch = Stopwatch()
        for token in self._llama.generate(prompt, temp=0.0, repeat_penalty=1.0, top_k=1):
            stopwatch.saw([int(token)])
            if token in self._stop or len(stopwatch.tokens) >= new_tokens:
                break
        return stopwatch.answer(self._stop)

    def logits(self, tokens: list[int], start: int) -> Any:
        self._forget()
        self._llama.eval(tokens)
        return self._llama.scores[start : len(tokens)].copy()


def _without_repacking() -> None:
    """The Llama class has no argument for it, so the C structure with the defaults is changed."""
    import llama_cpp.llama_cpp as low

    defaults = low.llama_model_default_params

    def parameters() -> Any:
        changed = defaults()
        changed.use_extra_bufts = False
        return changed

    low.llama_model_default_params = parameters


def open_engine(job: PeerJob) -> LlamaCpp:
    return LlamaCpp(job)
