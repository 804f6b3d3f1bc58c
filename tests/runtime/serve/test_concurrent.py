"""Requests over the lanes of one toy Decoder: whatever happens to one, the others never notice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.serve.client import post, text_of
from tests.support.serve.fakes import ToyDecoder, engine_failure, toy_answer
from tests.support.serve.serving import Served, serving, until

PROMPTS = [text for text in map(str, range(1000)) if len(toy_answer(text.encode())) > 60][:4]


@pytest.fixture
def toy() -> ToyDecoder:
    return ToyDecoder(lanes=4)


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def ask(clients: ThreadPoolExecutor, served: Served, prompt: str, **more: Any) -> Future[httpx.Response]:
    return clients.submit(post, served, prompt=prompt, **more)


def assert_right(prompts: list[str], answers: list[Future[httpx.Response]]) -> None:
    texts = [each.result().json()["choices"][0]["text"] for each in answers]
    assert texts == [text_of(toy_answer(prompt.encode())) for prompt in prompts]


def test_every_lane_runs_a_request_and_the_rest_waits(served: Served, toy: ToyDecoder, clients: ThreadPoolExecutor) -> None:
    with toy.paused():
        answers = [ask(clients, served, prompt) for prompt in PROMPTS]
        served.wait("resps:num_requests_running", 4)
        answers.append(ask(clients, served, PROMPTS[0], priority=7))
        served.wait("resps:num_requests_waiting", 1)
        assert len(toy.open) == 4
        assert served.metric('resps:num_requests_waiting_by_priority{priority="7"}') == 1
        assert [served.metric(f'resps:{name}{{replica="0"}}') for name in ("num_lanes", "num_lanes_running")] == [4, 4]
        health = served.http.get("/healthz").json()
        assert (health["lanes"], health["running"], health["waiting"]) == (4, 4, 1)
    assert_right([*PROMPTS, PROMPTS[0]], answers)
    served.wait('resps:num_lanes_running{replica="0"}', 0)
    assert served.metric('resps:num_requests_waiting_by_priority{priority="7"}') == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_ends_one_request_alone(served: Served, toy: ToyDecoder, clients: ThreadPoolExecutor, stream: bool) -> None:
    toy.failing, toy.failing_prompt = engine_failure(), PROMPTS[1].encode()
    with toy.paused():
        answers = [ask(clients, served, prompt) for prompt in (PROMPTS[0], *PROMPTS[2:])]
        failed = ask(clients, served, PROMPTS[1], stream=stream)
        served.wait("resps:num_requests_running", 4)
    assert_right([PROMPTS[0], *PROMPTS[2:]], answers)
    assert failed.result().json()["error"]["code"] == "engine_failure"
    assert served.http.get("/healthz").status_code == 200
    toy.failing = None
    assert_right([PROMPTS[1]], [ask(clients, served, PROMPTS[1])])


def test_a_client_that_leaves_and_a_deadline_end_one_request_alone(served: Served, toy: ToyDecoder, clients: ThreadPoolExecutor) -> None:
    toy.seconds = 0.01
    with toy.paused():
        answers = [ask(clients, served, prompt) for prompt in PROMPTS[:2]]
        late = ask(clients, served, PROMPTS[2], deadline=0.1)
        served.wait("resps:num_requests_running", 3)
        with pytest.raises(httpx.ReadTimeout):
            served.http.post("/v1/completions", json={"prompt": PROMPTS[3], "max_tokens": 99}, timeout=0.2)
        served.wait('resps:requests_total{outcome="disconnected"}', 1)
    assert late.result().json()["error"]["code"] == "deadline"
    assert_right(PROMPTS[:2], answers)
    until(lambda: sorted(map(str, toy.ended)) == ["cancelled", "deadline", "eos", "eos"])


def test_a_pass_that_fails_for_all_lanes_counts_once(toy: ToyDecoder, clients: ThreadPoolExecutor) -> None:
    toy.failing = engine_failure()
    with serving([toy], failures=3) as served:
        for seed, healthy in enumerate((True, True, False)):  # other bodies each time: the same ones would be refused
            with toy.paused():
                answers = [ask(clients, served, prompt, seed=seed) for prompt in PROMPTS]
                served.wait("resps:num_requests_running", 4)
            assert [each.result().status_code for each in answers] == [500] * 4
            until(lambda healthy=healthy: served.http.get("/healthz").json()["replicas"] == [healthy])  # type: ignore[misc]
        assert post(served).json()["error"]["code"] == "unhealthy"


def test_a_good_answer_between_failures_keeps_the_decoder(toy: ToyDecoder, clients: ThreadPoolExecutor) -> None:
    with serving([toy], failures=2) as served:
        toy.failing, toy.failing_prompt = engine_failure(), PROMPTS[0].encode()
        for seed in range(3):
            assert post(served, prompt=PROMPTS[0], seed=seed).status_code == 500
            assert post(served, prompt=PROMPTS[1]).status_code == 200
        assert served.http.get("/healthz").status_code == 200


def test_clients_are_told_apart_by_user_then_by_key(clients: ThreadPoolExecutor) -> None:
    def send(prompt: str, user: str | None, key: str) -> Future[httpx.Response]:
        body = {"prompt": prompt, "max_tokens": 99, "temperature": 0, "user": user}
        return clients.submit(httpx.post, f"{served.url}/v1/completions", json=body, headers={"Authorization": key}, timeout=20)

    one = ToyDecoder()
    with serving([one]) as served:
        with one.paused():
            send("0", None, "x")
            served.wait("resps:num_requests_running", 1)
            arrivals = [("1", None, "a"), ("2", None, "a"), ("3", "u", "a"), ("4", "u", "b"), ("5", None, "b")]
            for number, arrival in enumerate(arrivals):
                send(*arrival)
                served.wait("resps:num_requests_waiting", number + 1)
        until(lambda: len(one.ended) == 6)
    assert [bytes(each["prompt"]) for each in one.asked] == [b"0", b"1", b"3", b"5", b"2", b"4"]


def test_a_deadline_out_of_reach_is_refused_at_once(served: Served, toy: ToyDecoder, clients: ThreadPoolExecutor) -> None:
    toy.pace.token_seconds = 1.0
    with toy.paused():
        runs = ask(clients, served, PROMPTS[0])
        served.wait("resps:num_requests_running", 1)
        refused = post(served, deadline=30.0, max_tokens=100)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "deadline")
        assert int(refused.headers["retry-after"]) >= 1
        assert len(toy.asked) == 1
        may = ask(clients, served, PROMPTS[1], deadline=30.0, max_tokens=5)
        served.wait("resps:num_requests_running", 2)
    assert_right(PROMPTS[:1], [runs])
    assert may.result().status_code == 200
    assert served.metric('resps:requests_total{outcome="deadline"}') == 1
