"""Stand-ins for the packages of other engines, so that what scripts/peers does with them is tested without them. All of them write the
same text: see `following`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

STOP, VOCABULARY = 2, 50


def following(tokens: Sequence[int]) -> int:
    """The next token after ``tokens``, which depends on all of them."""
    return sum((place + 1) * token for place, token in enumerate(tokens)) % VOCABULARY


def answer(prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Without the stop token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + new_tokens and (token := following(tokens)) != STOP:
        tokens.append(token)
    return tokens[len(prompt) :]


class FakeLlamaCpp(ModuleType):
    """llama_cpp.llama_cpp. ``calls``: the number of rows of each call of llama_decode. Sequences keep their own tokens; a token at a
    wrong position is refused, as the library does."""

    GGML_TYPE_F32 = 0

    def __init__(self) -> None:
        super().__init__("llama_cpp.llama_cpp")
        self.sequences: dict[int, list[int]] = {}
        self.calls: list[int] = []
        self._logits: dict[int, Any] = {}
        self.params: Any = None
        self.llama_log_callback = lambda function: function
        for name in ("llama_backend_init", "llama_log_set"):
            setattr(self, name, lambda *_: None)

    def llama_model_default_params(self) -> Any:
        return SimpleNamespace(use_extra_bufts=True)

    def llama_context_default_params(self) -> Any:
        return SimpleNamespace()

    def llama_model_load_from_file(self, path: bytes, params: Any) -> Any:
        return None if path == b"missing" else object()

    def llama_init_from_model(self, model: Any, params: Any) -> Any:
        self.params = params
        return object()

    def llama_model_get_vocab(self, model: Any) -> Any:
        return object()

    def llama_vocab_n_tokens(self, vocabulary: Any) -> int:
        return VOCABULARY

    def llama_get_memory(self, context: Any) -> Any:
        return self.sequences

    def llama_memory_clear(self, memory: dict[int, list[int]], data: bool) -> None:
        memory.clear()

    def llama_memory_seq_rm(self, memory: dict[int, list[int]], sequence: int, start: int, end: int) -> None:
        assert (start, end) == (-1, -1)
        del memory[sequence]

    def llama_batch_init(self, tokens: int, embd: int, sequences: int) -> Any:
        rows: dict[str, list[Any]] = {name: [None] * tokens for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[[None] for _ in range(tokens)], **rows)

    def llama_decode(self, context: Any, batch: Any) -> int:
        self.calls.append(batch.n_tokens)
        self._logits.clear()
        for row in range(batch.n_tokens):
            sequence = batch.seq_id[row][0]
            tokens = self.sequences.setdefault(sequence, [])
            if sequence >= self.params.n_seq_max or batch.pos[row] != len(tokens) or batch.n_seq_id[row] != 1:
                return -1
            if len(tokens) >= self.params.n_ctx // self.params.n_seq_max:
                return 1
            tokens.append(batch.token[row])
            if batch.logits[row]:
                scores = [0.0] * VOCABULARY
                scores[following(tokens)] = 1.0
                self._logits[row] = (ctypes.c_float * VOCABULARY)(*scores)
        return 0

    def llama_get_logits_ith(self, context: Any, row: int) -> Any:
        return ctypes.cast(self._logits[row], ctypes.POINTER(ctypes.c_float))


class FakeHandle:
    """Of a request to FakePipeline."""

    def __init__(self, tokens: list[int]) -> None:
        self.left, self.unread = tokens, list[int]()

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Any]:
        ids, self.unread = self.unread, []
        return {0: SimpleNamespace(generated_ids=ids)}

    def get_status(self) -> str:
        return "running" if self.left else "finished"


class FakePipeline:
    """openvino_genai.ContinuousBatchingPipeline, which delivers two tokens of each request a step."""

    def __init__(self, model: Any, scheduling: Any, device: str, properties: dict[str, Any]) -> None:
        self.scheduling, self.properties = scheduling, properties
        self.handles: dict[int, FakeHandle] = {}
        self.most = 0

    def add_request(self, number: int, tokens: Any, config: Any) -> FakeHandle:
        assert number not in self.handles
        assert config.stop_token_ids == {STOP}
        (prompt,) = tokens.tolist()
        text = answer(prompt, config.max_new_tokens)
        self.handles[number] = FakeHandle(text if len(text) == config.max_new_tokens else [*text, STOP])
        return self.handles[number]

    def step(self) -> None:
        running = [handle for handle in self.handles.values() if handle.left]
        self.most = max(self.most, len(running))
        for handle in running:
            handle.unread, handle.left = handle.unread + handle.left[:2], handle.left[2:]


def fake_openvino() -> dict[str, ModuleType]:
    """The modules openvino and openvino_genai."""
    openvino, genai = ModuleType("openvino"), ModuleType("openvino_genai")
    openvino.Tensor = lambda array: array  # type: ignore[attr-defined]
    genai.SchedulerConfig = SimpleNamespace  # type: ignore[attr-defined]
    genai.GenerationConfig = SimpleNamespace  # type: ignore[attr-defined]
    genai.GenerationStatus = SimpleNamespace(RUNNING="running")  # type: ignore[attr-defined]
    genai.draft_model = lambda path, device, **properties: (path, device, properties)  # type: ignore[attr-defined]
    genai.ContinuousBatchingPipeline = FakePipeline  # type: ignore[attr-defined]
    return {"openvino": openvino, "openvino_genai": genai}


OLD_RUNTIME = '''
from contextlib import contextmanager
from types import SimpleNamespace
from tests.support.peer_engines import answer

class Decoder:
    """Of a checkout before SamplingParams and lanes."""
    def __init__(self, engine_dir, *, policy=None, draft=None, threads=None):
        assert (engine_dir / "manifest.json").is_file() and threads == 1
    def fork(self):
        return self
    def forget(self):
        pass
    @contextmanager
    def stream(self, prompt, *, max_new_tokens=512):
        yield [SimpleNamespace(tokens=(token,)) for token in answer(prompt, max_new_tokens)]
'''
"""runtime/__init__.py of an older checkout."""
