"""llama.cpp's batched decoding: llama_decode with several sequences, as its server uses it. Options: model; f32; repack, all as in
llama_cpp.py."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.peers.protocol import PeerJob

BATCH = 2048
"""Tokens of one call of llama_decode, and the server's default."""


@dataclass
class RunningSequence:
    """A request in its place. ``pending``: tokens that were not decoded yet, the prompt or the last new token; ``past``: how many were;
    ``left``: new tokens that may still come; ``row``: of the batch, whose logits choose the next token."""

    number: int
    pending: list[int]
    left: int
    past: int = 0
    row: int | None = None


class LlamaCppBatch:
    def __init__(self, job: PeerJob) -> None:
        import ctypes

        import numpy
        from llama_cpp import llama_cpp as low

        self._low, self._numpy, self._stop = low, numpy, set(job.stop)
        low.llama_backend_init()
        silent = low.llama_log_callback(lambda *_: None)
        self._silent = silent  # must live as long as the library may call it
        low.llama_log_set(silent, ctypes.c_void_p(0))
        model_params = low.llama_model_default_params()
        if not job.options.get("repack", True):
            model_params.use_extra_bufts = False
        self._model = low.llama_model_load_from_file(job.options["model"].encode(), model_params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {job.options['model']}")
        at_once = max(job.clients or [1])
        params = low.llama_context_default_params()
        longest = max(map(len, job.prompts)) + job.new_tokens
        params.n_ctx = at_once * -(-longest // 256) * 256  # every sequence gets an equal part
        params.n_seq_max, params.n_batch = at_once, BATCH
        params.n_threads = params.n_threads_batch = job.threads
        if job.options.get("f32"):
            params.type_k = params.type_v = low.GGML_TYPE_F32
        self._context = low.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError("llama.cpp cannot make a context")
        self._vocabulary = low.llama_vocab_n_tokens(low.llama_model_get_vocab(self._model))
        self._batch = low.llama_batch_init(BATCH, 0, 1)
        self._places: list[RunningSequence | None] = [None] * at_once

    def forget(self) -> None:
        self._low.llama_memory_clear(self._low.llama_get_memory(self._context), True)

    def add(self, number: int, prompt: list[int], new_tokens: int) -> None:
        self._places[self._places.index(None)] = RunningSequence(number, list(prompt), new_tokens)

    def step(self) -> list[tuple[int, list[int], bool]]:
        """Running answers first, then prompts as far as the batch has room, as in llama-server."""
        batch, memory = self._batch, self._low.llama_get_memory(self._context)
        batch.n_tokens = 0
        running = [(place, each) for place, each in enumerate(self._places) if each is not None]
        for place, each in sorted(running, key=lambda item: (len(item[1].pending) > 1, item[1].number)):
            self._fill(place, each)
        status = self._low.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}")
        came = []
        for place, each in running:
            if each.row is None:
                continue
            pointer = self._low.llama_get_logits_ith(self._context, each.row)
            token = int(self._numpy.ctypeslib.as_array(pointer, shape=(self._vocabulary,)).argmax())
            each.pending, each.row, each.left = [token], None, each.left - 1
            ended = token in self._stop or each.left == 0
            if ended:
                self._places[place] = None
                self._low.llama_memory_seq_rm(memory, place, -1, -1)
            came.append((each.number, [token], ended))
        return came

    def _fill(self, place: int, each: RunningSequence) -> None:
        """Put as many pending tokens into the batch as there is room for. The last one asks for logits."""
        batch = self._batch
        chunk = each.pending[: BATCH - batch.n_tokens]
        for token in chunk:
            at = batch.n_tokens
            batch.token[at], batch.pos[at] = token, each.past
            batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, place, 0
            batch.n_tokens, each.past = at + 1, each.past + 1
        each.pending = each.pending[len(chunk) :]
        if chunk and not each.pending:
            each.row = batch.n_tokens - 1
            batch.logits[each.row] = 1


def open_engine(job: PeerJob) -> LlamaCppBatch:
    return LlamaCppBatch(job)
