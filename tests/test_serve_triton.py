"""The model repository, and the real Triton over it where its binary is installed (nvidia-pytriton brings it)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from runtime import Decoder
from runtime.serve.errors import ApiError
from runtime.serve.triton.model import asked
from runtime.serve.triton.repository import write_repository
from tests.serving import until

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "the cat sat on the mat"


def write(out: Path, engine_dir: Path) -> Path:
    return write_repository(out, engine_dir, name="resps", replicas=2, threads=0, policy="", queue=8, queue_seconds=2)


def test_repository_holds_what_triton_reads(tiny_engine: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_engine)
    config = (folder / "config.pbtxt").read_text()
    assert f'key: "engine_dir", value: {{ string_value: "{tiny_engine.resolve()}" }}' in config
    assert "default_timeout_microseconds: 2000000" in config
    assert config.count("{") == config.count("}")
    assert "TritonPythonModel" in (folder / "1" / "model.py").read_text()


def test_parameters_are_those_of_completions() -> None:
    ask = asked("hello", False, '{"max_tokens": 7, "temperature": 0, "stop": ["x"]}')
    assert (ask.prompt, ask.max_tokens, ask.sampling.temperature, ask.stop) == ("hello", 7, 0, ("x",))
    assert asked("hello", True, None).prompt == [{"role": "user", "content": "hello"}]
    for wrong in ("[]", "{", '{"n": 2}', '{"max_tokens": "x"}', "[" * 100_000):
        with pytest.raises(ApiError):
            asked("hello", False, wrong)


@pytest.fixture(scope="module")
def triton(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Triton."""
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonserver is not installed (pip install nvidia-pytriton, in an environment of its own)")
    server = Path(found.submodule_search_locations[0]) / "tritonserver"
    root = tmp_path_factory.mktemp("triton")
    shutil.copytree(server / "backends", root / "backends")
    stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / "triton_python_backend_stub"
    shutil.copy(stub, root / "backends" / "python")
    write(root / "models", tiny_engine)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    packages = server.parents[1]
    python = packages.parents[2] / "bin"  # the backend takes the first Python on the path, and its working folder's packages
    env = {**os.environ, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}", "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")}
    line = [str(server / "bin" / "tritonserver"), "--model-repository", str(root / "models"), "--backend-directory", str(root / "backends"),
            "--http-port", str(port), "--allow-grpc=false", "--allow-metrics=false"]  # fmt: skip
    with (root / "log").open("w") as log, subprocess.Popen(line, stdout=log, stderr=log, env=env, cwd=ROOT) as process:
        url = f"http://127.0.0.1:{port}/v2"

        def ready() -> bool:
            assert process.poll() is None, (root / "log").read_text()
            try:
                return httpx.get(f"{url}/models/resps/ready").status_code == 200
            except httpx.TransportError:
                return False

        try:
            until(ready, 120)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def test_triton_answers_as_the_decoder_does(triton: str, decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, max_new_tokens=20)
    parameters = json.dumps({"max_tokens": 20, "temperature": 0})
    body = {"text_input": PROMPT, "sampling_parameters": parameters}
    whole = httpx.post(f"{triton}/models/resps/generate", json=body, timeout=60).json()
    assert whole["text_output"] == expected.text
    assert json.loads(whole["report"])["stats"]["new_tokens"] == len(expected.tokens)
    streamed = httpx.post(f"{triton}/models/resps/generate_stream", json={**body, "stream": True}, timeout=60).text
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line]
    assert len(events) > 2
    assert "".join(event["text_output"] for event in events) == expected.text
    chat = httpx.post(f"{triton}/models/resps/generate", json={**body, "chat": True}, timeout=60).json()
    assert chat["text_output"] == decoder.generate([{"role": "user", "content": PROMPT}], max_new_tokens=20).text


def test_triton_tells_what_is_wrong(triton: str) -> None:
    for parameters, what in (('{"n": 2}', "one answer a request"), ("[]", "no JSON object")):
        body = {"text_input": PROMPT, "sampling_parameters": parameters}
        refused = httpx.post(f"{triton}/models/resps/generate", json=body, timeout=60)
        assert refused.status_code >= 400
        assert what in refused.json()["error"]
