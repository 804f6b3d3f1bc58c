"""scripts/peers with several clients: the engines' batches, on stand-ins for their packages, and older checkouts of this project."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime import Decoder, SamplingParams
from scripts.peers.closed_loop import closed_loop
from scripts.peers.contenders import own_batch_contenders
from scripts.peers.engines import llama_cpp_batch
from scripts.peers.engines.openvino_batch import OpenVinoBatch
from scripts.peers.protocol import PeerJob
from scripts.peers.questions import PeerQuestion
from scripts.peers.turns import Bench
from scripts.peers.worker import work
from tests.support.peer_engines import OLD_RUNTIME, STOP, FakeLlamaCpp, answer, fake_openvino

PROMPTS = [[1, 5, 6], [1, 7], [1, 9, 9, 9], [1, 11], [1, 3, 4]]
ANSWERS = [answer(prompt, 6) for prompt in PROMPTS]  # of six tokens; the third ends with a stop token after three


def job(**changes: Any) -> PeerJob:
    given: dict[str, Any] = {"engine": "", "options": {"model": "x"}, "prompts": PROMPTS, "stop": [STOP], "new_tokens": 6, "threads": 2}
    return PeerJob(**{**given, "clients": [1, 3], **changes})


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> FakeLlamaCpp:
    package, low = ModuleType("llama_cpp"), FakeLlamaCpp()
    package.llama_cpp = low  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", low)
    return low


@pytest.mark.parametrize("batch", [2048, 3])
def test_llama_cpp_decodes_all_sequences_in_one_call(llama: FakeLlamaCpp, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Also if prompts do not fit into one call: running answers go first, and every sequence keeps its positions."""
    monkeypatch.setattr(llama_cpp_batch, "BATCH", batch)
    engine = llama_cpp_batch.open_engine(job(options={"model": "x", "f32": True, "repack": False}))
    for clients in (3, 1):
        engine.forget()
        requests = closed_loop(engine, PROMPTS, clients, 6, [STOP])
        assert [request.tokens for request in requests] == ANSWERS
        assert llama.sequences == {}  # ended sequences give their place back
    assert max(llama.calls) <= batch
    if batch > 100:
        assert llama.calls[:2] == [3 + 2 + 4, 3]  # three prompts, then a row each
    with pytest.raises(ValueError, match="cannot load missing"):
        llama_cpp_batch.open_engine(job(options={"model": "missing"}))


def test_openvino_batches_with_and_without_a_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in fake_openvino().items():
        monkeypatch.setitem(sys.modules, name, module)
    engine = OpenVinoBatch(job(options={"model": "x", "exact": True, "whole_prompt": True, "draft": "d", "generation": {"tree_depth": 3}}))
    assert [request.tokens for request in closed_loop(engine, PROMPTS, 3, 6, [STOP])] == ANSWERS
    # The pipeline's ids are not used again.
    assert [request.counts for request in closed_loop(engine, PROMPTS, 2, 6, [STOP])] == [
        [2, 2], [2, 2], [2], [2, 2], [2, 2],
    ]  # fmt: skip
    pipeline = engine._pipeline
    assert pipeline.most == 3
    assert pipeline.scheduling.enable_prefix_caching is False
    path, device, properties = pipeline.properties["draft_model"]
    assert (path, device, properties["KV_CACHE_PRECISION"]) == ("d", "CPU", "f32")
    assert "draft_model" not in OpenVinoBatch(job())._pipeline.properties


def test_ours_answers_several_at_once_as_plain_decoding_does(echo_engine: Path) -> None:
    with Decoder(echo_engine, policy="none", threads=1) as decoder:
        stop = list(decoder.manifest.tokens.stop)
        plain = [list(decoder.generate(prompt, SamplingParams(max_new_tokens=6)).tokens) for prompt in PROMPTS]
    for policy, replicas in (("none", 1), ("tuned", 2)):
        options = {"engine_dir": str(echo_engine), "policy": policy, "replicas": replicas, "lanes": 1}
        loops = work(job(engine="resps_batch", options=options, stop=stop))["loops"]
        assert [each["clients"] for each in loops] == [1, 3]
        for each in loops:
            tokens = [request["tokens"] for request in each["requests"]]
            assert tokens == [[token for token in text if token not in stop] for text in plain]


def test_an_error_of_ours_ends_the_loop(echo_engine: Path) -> None:
    options = {"engine_dir": str(echo_engine), "policy": "none", "replicas": 1, "lanes": 1}
    with pytest.raises(ValueError, match="token"):
        work(job(engine="resps_batch", options=options, prompts=[[1], [10**9]], clients=[2]))


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Path]:
    """An older checkout and a directory that it exported."""
    checkout, directory = tmp_path / "v1", tmp_path / "engine"
    (checkout / "runtime").mkdir(parents=True)
    (checkout / "runtime" / "__init__.py").write_text(OLD_RUNTIME)
    directory.mkdir()
    (directory / "manifest.json").write_text('{"schema": 1, "precision": "fp32"}')
    return checkout, directory


def test_an_older_checkout_runs_with_its_own_packages(old: tuple[Path, Path], tmp_path: Path) -> None:
    plain, tuned = own_batch_contenders([], [old], [2], [8])
    assert (plain.name, tuned.name, tuned.plain) == ("v1-fp32-2-replicas-plain", "v1-fp32-2-replicas", plain.name)
    questions = [PeerQuestion(f"a:{place}", prompt) for place, prompt in enumerate(PROMPTS)]
    bench = Bench(tmp_path / "work", questions, [STOP], 6, 2, clients=[1, 3])
    turn = bench.loops(tuned, bench.prepare(tuned)[0], 0)
    assert [[request.tokens for request in turn.loops[clients]] for clients in (1, 3)] == [ANSWERS, ANSWERS]
    assert turn.peak_mib > 0
    assert bench.loops(tuned, tuned.options, 0) == turn  # kept
    assert "with 1, 3 clients" in turn.summary
