"""What other programs read: vLLM's metric names and body fields, llama.cpp's timings, vLLM's and AIPerf's requests, the dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from runtime.decoding.stats import RequestCounters
from runtime.serve.observation.body import speculative_decoding, timings
from runtime.serve.observation.settings import Observation
from tests.support.serve.client import CHAT, LONG, events, post
from tests.support.serve.fakes import ToyDecoder, toy_answer
from tests.support.serve.serving import Served, serving

ROOT = Path(__file__).resolve().parents[4]
SPECULATION = ("drafts", "draft_tokens", "accepted_tokens")


def test_vllm_s_names_have_the_values_of_ours(served: Served) -> None:
    post(served, max_tokens=5)
    post(served, stream=True)
    served.wait('resps:requests_total{outcome="eos"}', 1)
    labels = '{engine="0",model_name="toy"}'
    for name in ("num_requests_running", "num_requests_waiting", "e2e_request_latency_seconds_count", "time_to_first_token_seconds_sum"):
        assert served.metric(f"vllm:{name}{labels}") == served.metric(f"resps:{name}")
    assert served.metric(f"vllm:request_generation_tokens_sum{labels}") == 5 + len(toy_answer(LONG.encode()))
    assert served.metric(f"vllm:request_prompt_tokens_count{labels}") == 2
    assert served.metric('vllm:request_success_total{engine="0",finished_reason="stop",model_name="toy"}') == 1
    page = served.http.get("/metrics").text
    for name in SPECULATION:
        assert f"vllm:spec_decode_num_{name}_total{labels} 0.0" in page
    assert f"vllm:kv_cache_usage_perc{labels} 0.0" in page
    assert len(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE)) == len(set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE)))


def test_outcomes_with_one_reason_of_vllm_s_are_summed(served: Served) -> None:
    post(served, max_tokens=1000, stop=[chr(toy_answer(LONG.encode())[3])])
    post(served)
    assert served.http.post("/v1/completions", json={"prompt": []}).status_code == 400
    served.wait('vllm:request_success_total{engine="0",finished_reason="stop",model_name="toy"}', 2)
    assert "invalid" not in "".join(line for line in served.http.get("/metrics").text.splitlines() if line.startswith("vllm:"))


def test_the_cache_is_used_while_a_request_runs(served: Served, toy: ToyDecoder) -> None:
    from tests.runtime.serve.test_trouble import unread

    with toy.paused(), unread(served):
        served.wait("resps:num_requests_running", 1)
        assert served.metric('resps:kv_cache_usage_ratio{replica="0"}') == len(LONG) / 200


def counters() -> RequestCounters:
    """Two rounds without a draft, three with: none, one and two of six tokens accepted."""
    made = RequestCounters(prompt_tokens=10, cached_prompt_tokens=4, new_tokens=9, cycles=5, drafts=3, drafted=6, accepted=3)
    made.prefill_seconds, made.decode_seconds, made.rounds_by_accepted = 0.3, 2.0, {0: 3, 1: 1, 2: 1}
    return made


def test_vllm_s_statistics_add_up() -> None:
    stats = speculative_decoding(counters().stats())
    assert stats == {
        "mean_acceptance_length": 2.0,
        "draft_acceptance_rate": 0.5,
        "acceptance_histogram": [1, 1, 1],
        "num_spec_steps": 3,
        "num_accepted_draft_tokens": 3,
        "num_draft_tokens": 6,
    }
    nothing = speculative_decoding(RequestCounters(1).stats())
    assert (nothing["mean_acceptance_length"], nothing["acceptance_histogram"]) == (1.0, [0])


def test_llama_cpp_s_timings() -> None:
    found = timings(counters().stats())
    assert (found["prompt_n"], found["cache_n"], found["prompt_ms"], found["prompt_per_second"]) == (6, 4, 300.0, 20.0)
    assert (found["predicted_n"], found["predicted_ms"], found["predicted_per_second"]) == (9, 2000.0, 4.0)
    assert (found["draft_n"], found["draft_n_accepted"]) == (6, 3)
    assert timings(RequestCounters(1).stats())["prompt_per_second"] == 0.0


def test_a_body_has_them_on_request_only(served: Served) -> None:
    plain = post(served).json()
    assert not {"metrics", "timings"} & set(plain)
    asked = post(served, spec_decode_metrics=True, timings_per_token=True).json()
    assert set(asked) == {*plain, "metrics", "timings"}
    assert asked["choices"] == plain["choices"]
    *_, end = events(post(served, spec_decode_metrics=True, stream=True).text)
    assert end["metrics"] == asked["metrics"]
    *rest, usage = events(post(served, spec_decode_metrics=True, stream=True, stream_options={"include_usage": True}).text)
    assert usage["metrics"] == end["metrics"]
    assert not any("metrics" in each for each in rest)  # AIPerf leaves out what it finds twice
    assert "metrics" not in post(served, spec_decode_metrics=True, n=2).json()


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_requests_as_vllm_s_and_nvidia_s_benchmarks_send_them(path: str) -> None:
    shared: dict[str, Any] = {
        "model": "toy",
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": False,
    }
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}], "max_completion_tokens": 16}
    completion: dict[str, Any] = {"prompt": LONG, "repetition_penalty": 1.0, "max_tokens": 16, "logprobs": None}
    with serving([ToyDecoder()], observation=Observation(per_request=True)) as served:
        body = shared | (chat if path.startswith("chat") else completion)
        response = served.http.post(f"/v1/{path}", json=body, headers={"Authorization": "Bearer none", "x-request-id": "1"})
        *_, usage = events(response.text)
        assert usage["usage"]["completion_tokens"] <= 16
        stats = usage["metrics"]["speculative_decoding"]
        assert sum(stats["acceptance_histogram"]) == stats["num_spec_steps"]
        found = [line for line in served.http.get("/metrics").text.splitlines() if line.startswith("vllm:spec_decode")]
        assert len([line for line in found if line.split("{")[0].endswith("_total")]) >= 3


def test_the_dashboard_asks_for_metrics_that_exist(served: Served) -> None:
    post(served)
    post(served, stream=True, stop=["e"])
    served.http.post("/v1/chat/completions", json=CHAT)
    page = served.http.get("/metrics").text
    known = set(re.findall(r"^([a-z]+:\w+)", page, re.MULTILINE)) | set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    names = {name for expression in asked for name in re.findall(r"\b(?:resps|vllm):\w+", expression)}
    assert len(asked) >= 12
    assert len(names) >= 15
    assert names <= known, names - known
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)
