"""Forks of a Decoder, which answer several requests at the same time, and warm-up."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from policy import FixedPolicy, TreeSpec
from runtime import Decoder, Result, SamplingParams
from tests.support.eagle_engines import export_echo

TREE, PROMPT = FixedPolicy(TreeSpec(12, 4, 3)), list(range(5, 25))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_echo(tmp_path_factory.mktemp("forks"), "--prefill-rows", "64")


def test_forks_answer_at_the_same_time_and_share_the_weights(engine: Path) -> None:
    prompts = [[*range(5 + turn, 30 + turn)] for turn in range(6)]
    with Decoder(engine, threads=1) as decoder:
        expected = [decoder.generate(prompt, SamplingParams(max_new_tokens=40, logprobs=2), policy=TREE) for prompt in prompts]
        forks = [decoder, decoder.fork(), decoder.fork()]
        forks.append(forks[2].fork())
        assert len({id(fork.models.target._engine._session) for fork in forks}) == 1  # type: ignore[attr-defined]
        assert len({id(fork.models.target.cache) for fork in forks}) == len(forks)
        came: dict[int, list[Result]] = {}
        start = threading.Barrier(len(forks))

        def work(number: int, fork: Decoder) -> None:
            start.wait()
            came[number] = [fork.generate(prompt, SamplingParams(max_new_tokens=40, logprobs=2), policy=TREE) for prompt in prompts]

        threads = [threading.Thread(target=work, args=each) for each in enumerate(forks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        for results in came.values():
            assert [result.tokens for result in results] == [result.tokens for result in expected]
            assert [result.logprobs for result in results] == [result.logprobs for result in expected]
        assert len(came) == len(forks)
        assert forks[1].totals.requests == {"length": len(prompts)}
        for fork in forks[1:]:
            fork.close()


def test_closing_one_leaves_the_others_and_the_last_one_frees(engine: Path) -> None:
    first = Decoder(engine, threads=1, policy=TREE)
    second = first.fork()
    expected = first.generate(PROMPT, SamplingParams(max_new_tokens=20)).tokens
    stream = second.stream(PROMPT, SamplingParams(max_new_tokens=20))
    next(stream)
    first.close()
    list(stream)
    assert second.generate(PROMPT, SamplingParams(max_new_tokens=20)).tokens == expected
    third = second.fork()
    second.close()
    assert third.generate(PROMPT, SamplingParams(max_new_tokens=20)).tokens == expected
    session = weakref.ref(third.models.target._engine._session)  # type: ignore[attr-defined]
    third.close()
    del stream
    gc.collect()
    assert session() is None


def test_a_policy_given_as_an_object_is_not_shared(engine: Path) -> None:
    class Remembering(FixedPolicy):
        pass

    policy = Remembering(TreeSpec(4, 3, 1))
    with Decoder(engine, threads=1, policy=policy) as decoder, decoder.fork() as fork:
        assert decoder._policy is policy
        assert fork._policy is not policy
        assert fork._policy == policy


def test_a_policy_that_cannot_be_copied_leaves_nothing_behind(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Single(FixedPolicy):
        def __deepcopy__(self, memo: dict[int, Any]) -> Single:
            raise TypeError("there is one of me")

    with Decoder(engine, threads=1, policy=Single(TreeSpec(4, 3, 1))) as decoder:
        monkeypatch.setattr(decoder._engine.backend, "fork", lambda: pytest.fail("opened what nobody will close"))
        with pytest.raises(TypeError, match="there is one of me"):
            decoder.fork()


def test_warmup_prepares_what_the_first_request_needs(engine: Path) -> None:
    with Decoder(engine, threads=1, policy=TREE) as decoder:
        engines(decoder)["target"]._free_all()
        decoder.warmup()
        rows, chunks = decoder.manifest.limits.prefill_rows, [dict(sizes) for sizes, _ in engines(decoder)["target"]._calls]
        assert len({sizes["span"] for sizes in chunks if (sizes["n"], sizes["r"]) == (rows, 1)}) == 2  # two chunks, one behind the other
        calls = {name: len(each._calls) for name, each in engines(decoder).items()}
        decoder.generate(PROMPT[:10], SamplingParams(max_new_tokens=3))
        new = {name: len(each._calls) - calls[name] for name, each in engines(decoder).items()}
    assert new["target"] <= 1  # the prompt's own length
    assert new["expand"] == 0


def engines(decoder: Decoder) -> dict[str, Any]:
    eagle = decoder.models.model_drafter
    assert eagle is not None
    return {"target": decoder.models.target._engine, "expand": eagle._engines.expand}
