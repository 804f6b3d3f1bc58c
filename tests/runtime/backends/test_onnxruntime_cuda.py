"""ONNX Runtime's CUDA backend on an emulated GPU: memory, cache and errors are the real code, only the kernels are the CPU's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.backends.cuda.backend
import runtime.backends.cuda.onnxruntime
import runtime.models
from policy import FixedPolicy, TreeSpec
from runtime import Decoder, EngineDirError, SamplingParams
from runtime.backends.cuda.bindings import LazyOutputs
from runtime.backends.cuda.onnxruntime import open_session
from tests.support.eagle_engines import prompt_of
from tests.support.gpu.beside_host import expect_one_conversation, expect_ruled_answers
from tests.support.gpu.device_draws import DeviceDraws
from tests.support.gpu.emulated_gpu import EmulatedCuda

# The CPU provider replaces the CUDA provider, so it is listed twice.
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate provider")

TREES = [TreeSpec(1, 0, 0), TreeSpec(5, 3, 2), TreeSpec(16, 4, 4), TreeSpec(40, 9, 3)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCuda]:
    import onnxruntime

    def one_thread() -> Any:
        options = session_options()
        options.intra_op_num_threads = 1
        return options

    cuda, session_options = EmulatedCuda(eager=True), onnxruntime.SessionOptions
    monkeypatch.setattr(onnxruntime, "SessionOptions", one_thread)
    monkeypatch.setattr(runtime.backends.cuda.backend, "Cuda", lambda: cuda)
    monkeypatch.setattr(runtime.backends.cuda.onnxruntime, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(runtime.backends.cuda.onnxruntime, "DEVICE", "cpu")
    yield cuda
    if cuda.closed:
        assert cuda.leaked() == (0, 0)


@pytest.fixture(autouse=True)
def host_draws_as_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.decoding.gumbel.GumbelMaxSampler", DeviceDraws)


@pytest.mark.parametrize(
    ("draft", "tree"), [*itertools.product(["eagle", "ngram"], TREES), ("none", TREES[2]), ("eagle+ngram", TREES[2])], ids=str
)
@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_k=12, top_p=0.9, seed=4)], ids=["greedy", "sampled"]
)
def test_device_answers_as_the_host_does(
    echo_engine: Path, gpu: EmulatedCuda, tree: TreeSpec, draft: str, sampling: SamplingParams
) -> None:
    """With prompts that fill chunks exactly and partly, and answers that grow the cache several times."""
    with Decoder(echo_engine, draft=draft, threads=1) as host, Decoder(echo_engine, draft=draft, device="cuda") as device:
        for length, new in ((1, 20), (16, 20), (45, 100)):
            prompt, params = prompt_of(length), replace(sampling, max_new_tokens=new)
            expected = host.generate(prompt, params, policy=FixedPolicy(tree)).tokens
            assert device.generate(prompt, params, policy=FixedPolicy(tree)).tokens == expected
            mine, theirs = device.models.target.cache.rows(), host.models.target.cache.rows()
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def test_a_conversation_reuses_the_cached_prefix(echo_engine: Path, gpu: EmulatedCuda) -> None:
    with Decoder(echo_engine, threads=1) as host, Decoder(echo_engine, device="cuda") as device:
        expect_one_conversation(host, device, TREES[2])


def test_rules_give_the_host_s_answer(echo_engine: Path, gpu: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder(echo_engine, threads=1) as host, Decoder(echo_engine, device="cuda") as device:
        expect_ruled_answers(host, device, LazyOutputs, monkeypatch)


def test_forks_share_sessions_and_their_stream(echo_engine: Path, gpu: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"params": SamplingParams(max_new_tokens=40), "policy": FixedPolicy(TREES[2])}
    prompts = [prompt_of(length) for length in (3, 20, 45)]
    opened: list[Path] = []
    monkeypatch.setattr(
        runtime.backends.cuda.backend, "open_session", lambda file, cuda: (opened.append(file), open_session(file, cuda))[1]
    )
    with Decoder(echo_engine, threads=1) as host, ThreadPoolExecutor(2) as threads:
        expected = [host.generate(prompt, **options).tokens for prompt in prompts]
        first = Decoder(echo_engine, device="cuda")
        second = first.fork()
        answers = threads.map(lambda fork: [fork.generate(prompt, **options).tokens for prompt in prompts], (first, second))
        assert list(answers) == [expected] * 2
        first.close()
        assert not gpu.closed
        assert second.generate(prompts[0], **options).tokens == expected[0]
        second.close()
        assert gpu.closed
    assert len(opened) == len(set(opened))


def test_context_may_be_filled_to_the_last_token(echo_engine: Path, gpu: EmulatedCuda) -> None:
    prompt = prompt_of(246)
    with Decoder(echo_engine, threads=1) as host, Decoder(echo_engine, device="cuda") as device:
        assert device.generate(prompt).tokens == host.generate(prompt).tokens


def test_no_gpu_raises_a_one_line_error(echo_engine: Path) -> None:
    with pytest.raises(EngineDirError, match=r"no NVIDIA GPU can be used here .* — .*export for the CPU"):
        Decoder(echo_engine, device="cuda")


def test_no_cuda_provider_is_refused(echo_engine: Path, gpu: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.backends.cuda.onnxruntime, "PROVIDER", "CUDAExecutionProvider")
    with pytest.raises(EngineDirError, match=r"has no CUDA — .*resps\[gpu\]"):
        Decoder(echo_engine, device="cuda")
    assert gpu.leaked() == (0, 0)


class HostPart:
    """A part of the graph that another provider would run."""

    ep_name = "Other"

    def get_nodes(self) -> list[Any]:
        return [type("Node", (), {"op_type": name}) for name in ("TensorScatter", "Shape", "Gemm")]


@pytest.mark.parametrize(
    ("fakes", "message"),
    [
        ({"get_providers": lambda self: ["Other"]}, r"would run .*target.onnx on the CPU"),
        (
            {"get_provider_graph_assignment_info": lambda self: [HostPart()]},
            r"no CUDA kernels for Gemm, TensorScatter in .*target.onnx",
        ),
    ],
    ids=["session", "operators"],
)
def test_falling_back_to_the_host_is_refused(
    echo_engine: Path, gpu: EmulatedCuda, monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Any], message: str
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", type("FakeSession", (onnxruntime.InferenceSession,), fakes))
    with pytest.raises(EngineDirError, match=message):
        Decoder(echo_engine, device="cuda")
    assert gpu.leaked() == (0, 0)


def test_too_little_memory_names_the_needed_size(echo_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.backends.cuda.backend, "Cuda", lambda: EmulatedCuda(memory=1 << 20))
    with pytest.raises(Exception, match=r"Emulated has 1 MiB free of 1, the engines need about \d+") as raised:
        Decoder(echo_engine, device="cuda")
    assert type(raised.value).__name__ == "GpuMemoryError"
    assert raised.value.exit_code == 1  # type: ignore[attr-defined]


def test_unknown_device_is_refused(echo_engine: Path) -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu' — choose from cpu, cuda"):
        Decoder(echo_engine, device="tpu")
