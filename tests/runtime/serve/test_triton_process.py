"""The real Triton over the tiny engine, if it is installed (nvidia-pytriton)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import numpy as np
import pytest

from runtime import Decoder, SamplingParams
from tests.support.serve.serving import until
from tests.support.serve.triton import PROMPT, write

ROOT = Path(__file__).resolve().parents[3]
LONG = 400  # tokens of an answer that must take a while


@dataclass(frozen=True)
class Triton:
    """A running Triton: URLs of HTTP and metrics, address of gRPC."""

    url: str
    grpc: str
    metrics: str

    def metric(self, line: str) -> float:
        """The value of ``name{labels}`` in Triton's metrics; 0 if it is missing."""
        lines = httpx.get(self.metrics).text.splitlines()
        return next((float(each.rpartition(" ")[2]) for each in lines if each.rpartition(" ")[0] == line), 0.0)

    def generate(self, seed: int) -> httpx.Response:
        """Ask for a long answer."""
        body = {"text_input": PROMPT, "sampling_parameters": json.dumps({"max_tokens": LONG, **sampled(seed)})}
        return httpx.post(f"{self.url}/models/resps/generate", json=body, timeout=120)


def sampled(seed: int) -> dict[str, Any]:
    return {"temperature": 1.5, "seed": seed}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def triton(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton process over the tiny engine."""
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonserver is not installed (pip install nvidia-pytriton, in an environment of its own)")
    server = Path(package.submodule_search_locations[0]) / "tritonserver"
    root = tmp_path_factory.mktemp("triton")
    shutil.copytree(server / "backends", root / "backends")
    stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / "triton_python_backend_stub"
    shutil.copy(stub, root / "backends" / "python")
    write(root / "models", tiny_engine)
    http, grpc, metrics = (free_port() for _ in range(3))
    packages = server.parents[1]
    python = packages.parents[2] / "bin"  # the backend runs the first Python on PATH and imports from its working directory
    env = {**os.environ, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}", "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")}
    line = [str(server / "bin" / "tritonserver"), "--model-repository", str(root / "models"), "--backend-directory", str(root / "backends"),
            "--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]  # fmt: skip
    with (root / "log").open("w") as log, subprocess.Popen(line, stdout=log, stderr=log, env=env, cwd=ROOT) as process:
        server_urls = Triton(f"http://127.0.0.1:{http}/v2", f"127.0.0.1:{grpc}", f"http://127.0.0.1:{metrics}/metrics")

        def ready() -> bool:
            assert process.poll() is None, (root / "log").read_text()
            try:
                return httpx.get(f"{server_urls.url}/models/resps/ready").status_code == 200
            except httpx.TransportError:
                return False

        try:
            until(ready, 120)
            yield server_urls
        finally:
            process.terminate()
            process.wait(60)


def test_triton_answers_as_the_decoder_does(triton: Triton, decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=20))
    parameters = json.dumps({"max_tokens": 20, "temperature": 0})
    body = {"text_input": PROMPT, "sampling_parameters": parameters}
    whole = httpx.post(f"{triton.url}/models/resps/generate", json=body, timeout=60).json()
    assert whole["text_output"] == expected.text
    assert json.loads(whole["report"])["stats"]["new_tokens"] == len(expected.tokens)
    streamed = httpx.post(f"{triton.url}/models/resps/generate_stream", json={**body, "stream": True}, timeout=60).text
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line]
    assert len(events) > 2
    assert "".join(event["text_output"] for event in events) == expected.text
    chat = httpx.post(f"{triton.url}/models/resps/generate", json={**body, "chat": True}, timeout=60).json()
    assert chat["text_output"] == decoder.generate([{"role": "user", "content": PROMPT}], SamplingParams(max_new_tokens=20)).text


def test_triton_answers_bodies_of_chat_completions(triton: Triton, decoder: Decoder) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 20, "temperature": 0, "rounds": True}
    expected = decoder.generate(body["messages"], SamplingParams(max_new_tokens=20)).text
    whole = httpx.post(f"{triton.url}/models/resps/generate", json={"request": json.dumps(body)}, timeout=60).json()
    answer = json.loads(whole["response"])
    assert (answer["object"], answer["choices"][0]["message"]["content"]) == ("chat.completion", expected)
    assert answer["resps"]["rounds"]
    asked = {"request": json.dumps({**body, "stream": True})}
    streamed = httpx.post(f"{triton.url}/models/resps/generate_stream", json=asked, timeout=60).text
    events = [json.loads(json.loads(line.removeprefix("data: "))["response"]) for line in streamed.splitlines() if line]
    assert len(events) > 2
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in events) == expected


def test_triton_reports_invalid_requests(triton: Triton) -> None:
    for parameters, text in (('{"best_of": 2}', "best_of"), ("[]", "not a JSON object"), ('{"policy": "magic"}', "unknown policy")):
        body = {"text_input": PROMPT, "sampling_parameters": parameters}
        refused = httpx.post(f"{triton.url}/models/resps/generate", json=body, timeout=60)
        assert refused.status_code >= 400
        assert text in refused.json()["error"]


def test_a_full_queue_refuses_and_admitted_requests_are_served(triton: Triton, decoder: Decoder) -> None:
    with ThreadPoolExecutor(30) as clients:
        responses = list(clients.map(triton.generate, range(30)))  # two run, one waits in the model, eight in the queue
    bodies = [each.json() for each in responses]
    refused = [each["error"] for each in bodies if "error" in each]
    assert len(refused) < len(bodies) - 1
    assert any("maximum queue size" in error for error in refused)
    assert all("maximum queue size" in error or "timeout" in error or "no engine became free" in error for error in refused)
    for seed, each in enumerate(bodies):
        if "error" not in each:
            assert each["text_output"] == long_answer(decoder, seed).text


def test_a_cancelled_request_ends_after_the_round(triton: Triton, decoder: Decoder) -> None:
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip install 'tritonclient[grpc]')")
    seed = max(range(30), key=lambda seed: len(long_answer(decoder, seed).tokens))
    whole = long_answer(decoder, seed)
    before, tokens = triton.metric(CANCELLED), triton.metric("resps:generation_tokens_total")

    def tensor(name: str, kind: str, value: Any) -> Any:
        made = grpc.InferInput(name, [1, 1], kind)
        made.set_data_from_numpy(np.array([[value]], dtype=bool if kind == "BOOL" else np.object_))
        return made

    inputs = [
        tensor("text_input", "BYTES", PROMPT),
        tensor("stream", "BOOL", True),
        tensor("sampling_parameters", "BYTES", json.dumps({"max_tokens": LONG, **sampled(seed)})),
    ]
    responses: SimpleQueue[Any] = SimpleQueue()
    with grpc.InferenceServerClient(triton.grpc) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        client.async_stream_infer("resps", inputs)
        result, error = responses.get(timeout=30)
        assert error is None
        assert result.as_numpy("text_output") is not None
        client.stop_stream(cancel_requests=True)
    until(lambda: triton.metric(CANCELLED) == before + 1, 30)
    assert triton.metric("resps:generation_tokens_total") - tokens < len(whole.tokens)
    assert triton.generate(seed).json()["text_output"] == whole.text  # the replica was released


CANCELLED = 'resps:requests_total{outcome="cancelled"}'


def long_answer(decoder: Decoder, seed: int) -> Any:
    return decoder.generate(PROMPT, SamplingParams(temperature=1.5, seed=seed, max_new_tokens=LONG))
