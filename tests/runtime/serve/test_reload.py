"""A new tuning without a restart: answers under way go on, a bad one changes nothing."""

from __future__ import annotations

import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from export.tuning.install import install
from export.tuning.learning.trained import TrainedPolicy
from runtime import Decoder, EngineDirError, SamplingParams
from runtime.manifest.load import load_manifest
from runtime.policies.load import load_net
from runtime.serve.reload import _reloaded
from tests.support.serve.client import LONG, post, text_of
from tests.support.serve.fakes import ToyDecoder, toy_answer
from tests.support.serve.process import running
from tests.support.serve.serving import serving, until
from tests.support.tunings import a_tuning, edit_tuning, net


class Tuned(ToyDecoder):
    """A ToyDecoder that can be forked with another tuning; ``next``: what that gives, or an error."""

    next: Any = None

    def fork(self, *, reload_tuning: bool = False) -> Any:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def policy(self, name: str) -> None:
        pass

    def warmup(self) -> None:
        pass

    def __enter__(self) -> Tuned:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_answers_under_way_are_finished_by_the_old_engine() -> None:
    old, new = Tuned(lanes=2), Tuned(lanes=3)
    old.next = new
    with serving([old]) as served, ThreadPoolExecutor(4) as clients:
        with old.paused(), new.paused():
            first = [clients.submit(post, served, stream=stream) for stream in (True, False)]
            until(lambda: served.services.pool.running == 2)
            waits = clients.submit(post, served)
            until(lambda: served.services.pool.waiting.total() == 1)
            answer = served.http.post("/admin/reload")
            assert (answer.status_code, answer.json()["replicas"]) == (200, 1)
            until(lambda: len(new.asked) == 1)  # the waiting one runs on the new engine
            assert (len(old.asked), served.services.pool.running, old.closed) == (2, 3, False)
            assert served.services.pool.lanes == 3
        expected = text_of(toy_answer(LONG.encode()))
        assert "[DONE]" in first[0].result().text
        assert first[1].result().json()["choices"][0]["text"] == waits.result().json()["choices"][0]["text"] == expected
        until(lambda: old.closed)
        assert post(served).status_code == 200
        assert len(new.asked) == 2
        assert served.http.get("/readyz").status_code == 200
    assert new.closed


@pytest.mark.parametrize("problem", [EngineDirError("the tuning is damaged — tune again"), ValueError("unknown policy")])
def test_a_bad_tuning_changes_nothing_and_says_so(problem: Exception) -> None:
    toy = Tuned()
    toy.next = problem
    with serving([toy]) as served:
        error = served.http.post("/admin/reload").json()["error"]
        assert (error["code"], str(problem).split(" —")[0] in error["message"]) == ("tuning_unusable", True)
        assert post(served).status_code == 200
        assert not toy.closed


def test_a_reload_while_answers_still_run_on_an_old_engine_is_shut_down_cleanly() -> None:
    old, new = Tuned(), Tuned()
    old.next = new
    with serving([old], drain_seconds=0.2) as served, ThreadPoolExecutor(1) as clients:
        old.seconds = 0.05
        asked = clients.submit(post, served)
        until(lambda: served.services.pool.running == 1)
        assert served.http.post("/admin/reload").status_code == 200
        served.server.loop.call_soon_threadsafe(served.server.begin_shutdown)
        assert asked.result().status_code in (200, 503)
    assert old.closed
    assert new.closed


def tune(directory: Path, seed: int, **changes: Any) -> None:
    """Install a tuning whose network for Re-SpS is drawn with ``seed``."""
    size = load_manifest(directory).shape.hidden * 3
    learned = {"resps": TrainedPolicy(slow=net(size, 3, seed), actions=((1, 0, 0), (4, 3, 2), (9, 2, 3)))}
    install(directory, load_manifest(directory), a_tuning(directory, learned, threads=1, **changes))


def resps_logits(decoder: Decoder) -> list[float]:
    """What the network of Re-SpS gives for a state of ones."""
    call: Any = load_net(decoder._engine.backend, "resps.slow")
    return list(call(np.ones((1, decoder.manifest.shape.hidden * 3), dtype=np.float32))[0])


@pytest.fixture
def tuned_copy(echo_engine: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "tuned"
    shutil.copytree(echo_engine, directory)
    tune(directory, 1)
    return directory


def test_a_real_engine_gets_the_directory_s_tuning(tuned_copy: Path) -> None:
    with Decoder(tuned_copy, threads=1, lanes=2) as decoder:
        text, before = decoder.generate("the cat", SamplingParams(max_new_tokens=12)).text, resps_logits(decoder)
        tune(tuned_copy, 2, table=((2, 1, 1),))
        (again,) = _reloaded([decoder])
        with again:
            assert ("table" in decoder.policies, "table" in again.policies) == (False, True)
            assert resps_logits(again) != before  # the new network, although it has the old one's name
            assert resps_logits(decoder) == before
            for each in (decoder, again):
                assert each.generate("the cat", SamplingParams(max_new_tokens=12)).text == text
        edit_tuning(tuned_copy, lambda tuning: tuning.update(engine="other"))
        with pytest.raises(EngineDirError, match="is not for this engine, machine"):
            _reloaded([decoder])
        file = tuned_copy / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "tuning": None, "model": "other"}))
        with pytest.raises(EngineDirError, match="was exported again"):
            _reloaded([decoder])
        assert decoder.generate("the cat", SamplingParams(max_new_tokens=12)).text == text


def test_sighup_reloads_where_there_is_no_terminal(tuned_copy: Path) -> None:
    with running(tuned_copy, "--threads", "1", "--no-warmup", "--model-name", "tuned") as (process, url):
        assert process.stderr is not None
        for change, told in (
            ({"table": ((2, 1, 1),)}, "the tuning was reloaded, its policies are none, fixed, table"),
            ({}, "was not changed"),
        ):
            tune(tuned_copy, 3, **change)
            if not change:
                edit_tuning(tuned_copy, lambda tuning: tuning.update(engine="other"))
            process.send_signal(signal.SIGHUP)
            line = process.stderr.readline()
            while line.startswith("resps:"):  # warnings
                line = process.stderr.readline()
            assert told in line
            answer = httpx.post(f"{url}/completions", json={"prompt": "the cat", "max_tokens": 3}, timeout=30)
            assert answer.status_code == 200
