"""Prefix caching: a request reuses what the last one left in the caches, with the same answer, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder, EngineFailure, SamplingParams
from runtime.decoding.loop import begin, prefill, rounds
from runtime.decoding.sampling import greedy
from runtime.decoding.target import common_prefix_length
from runtime.drafters.eagle import EagleDrafter
from runtime.drafters.ngram import NgramDrafter
from tests.support.eagle_engines import export_echo
from tests.support.fakes import VOCAB as TOY_VOCAB
from tests.support.fakes import toy_logits, toy_target
from tests.support.planted import PlantedDrafter
from tests.support.tiny import random_ids as ids

TREE = TreeSpec(12, 4, 3)


# --- with the toy target ---


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_requests_gives_what_each_gives_alone(seed: int) -> None:
    """Prompts that continue the last conversation, share a prefix with it, or are new; each is abandoned at a random round."""
    random, target, history = np.random.default_rng(seed), toy_target(), [1, 2, 3]
    for turn in range(12):
        shared = history[: int(random.integers(0, len(history) + 1))][:50]
        prompt = [*shared, *random.integers(0, TOY_VOCAB, int(random.integers(1, 12))).tolist()]
        answer: list[int] = []
        while len(answer) < 12:
            answer.append(int(toy_logits([*prompt, *answer]).argmax()))
        drafter = NgramDrafter() if random.random() < 0.3 else PlantedDrafter(len(prompt), answer, TOY_VOCAB, int(random.integers(99)))
        held = target._committed[: target.length]
        kept = begin(target, drafter, prompt)
        assert kept == (min(common_prefix_length(held, prompt), len(prompt) - 1) if turn else 0)
        *_, root = prefill(target, drafter, greedy, prompt)
        assert root is not None
        came = [root.token]
        for each in rounds(target, drafter, FixedPolicy(TREE), greedy, root, 11):
            came.extend(each.tokens)
            if random.random() < 0.2:
                break
        assert came == answer[: len(came)]
        fresh = toy_target()
        list(fresh.prefill([*prompt, *came[:-1]]))
        np.testing.assert_array_equal(target.cache.rows(), fresh.cache.rows())
        assert target._committed == [*prompt, *came[:-1]]
        target.cache_valid, history = True, [*prompt, *came]


def test_an_interrupted_request_leaves_nothing_to_the_next() -> None:
    target = toy_target()
    begin(target, NgramDrafter(), [1, 2, 3, 4])
    list(target.prefill([1, 2, 3, 4]))
    assert not target.cache_valid  # until the end of a round
    assert begin(target, NgramDrafter(), [1, 2, 3, 4, 5]) == target.length == 0


def test_a_cache_that_was_used_behind_the_targets_back_is_not_believed() -> None:
    target = toy_target()
    list(target.prefill([1, 2, 3, 4]))
    assert list(target.cached_prefix([1, 2, 3, 9])) == [1, 2, 3]
    assert list(target.cached_prefix([1, 2, 3])) == [1, 2]  # the last token's scores are needed
    target.cache.truncate(0)
    assert list(target.cached_prefix([1, 2, 3, 9])) == []


# --- with real engines ---


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with a draft that is often right, and few rows per pass."""
    return export_echo(tmp_path_factory.mktemp("prefix"), "--prefill-rows", "8")


@pytest.fixture(scope="module")
def pair(engine: Path) -> Iterator[tuple[Decoder, Decoder]]:
    """A Decoder that keeps its caches, and one whose caches are cleared before each request."""
    with Decoder(engine, draft="eagle", threads=1) as keeping, Decoder(engine, draft="eagle", threads=1) as fresh:
        yield keeping, fresh


def expect_same_state(keeping: Decoder, fresh: Decoder) -> None:
    """Compare keys and values of target and draft. Rows computed in passes with other rows differ in the last bits; wrong ones by more than
    1."""
    for mine, other in ((keeping.models.target.cache, fresh.models.target.cache), (_eagle(keeping)._cache, _eagle(fresh)._cache)):
        assert mine.length == other.length
        np.testing.assert_allclose(mine.rows(), other.rows(), rtol=0, atol=1e-3)
    assert _eagle(keeping)._committed == _eagle(fresh)._committed


def _eagle(decoder: Decoder) -> EagleDrafter:
    eagle = decoder.models.model_drafter
    assert eagle is not None
    return eagle


def expect_as_fresh(pair: tuple[Decoder, Decoder], prompt: list[int], **options: Any) -> int:
    """Both give the same answer with the same trees, and end in the same state. Returns the number of reused prompt tokens."""
    keeping, fresh = pair
    fresh.forget()
    mine, other = (each.generate(prompt, **options) for each in (keeping, fresh))
    assert (mine.tokens, mine.text, mine.stop) == (other.tokens, other.text, other.stop)
    assert mine.stats.cycles == other.stats.cycles
    assert mine.stats.actions == other.stats.actions
    assert other.stats.cached_prompt_tokens == 0
    expect_same_state(keeping, fresh)
    return mine.stats.cached_prompt_tokens


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.9, seed=3)], ids=str)
def test_a_conversation_is_not_read_again(pair: tuple[Decoder, Decoder], sampling: SamplingParams) -> None:
    chat = ids(40, 1)
    pair[0].forget()
    options = {"params": replace(sampling, max_new_tokens=21), "policy": FixedPolicy(TREE)}
    assert expect_as_fresh(pair, chat, **options) == 0
    for turn in range(4):
        held = len(chat) + 20  # the last token of an answer was never computed
        chat += [*pair[0].generate(chat, **options).tokens, *ids(5, turn)]  # the same answer as before
        # The draft has not committed the last round's tokens, and of one more the features are needed again.
        assert held - TREE.depth - 2 <= expect_as_fresh(pair, chat, **options) < held


@pytest.mark.parametrize("seed", range(6))
def test_any_conversation_with_any_interruption(pair: tuple[Decoder, Decoder], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared prefixes of every length, with plain, abandoned, cancelled and failed requests between, and stops inside a block."""
    random, (keeping, _) = np.random.default_rng(seed), pair
    history, kept = ids(30, seed), []
    for turn in range(14):
        shared = history[: int(random.integers(0, len(history) + 1))][:120]
        prompt = [*shared, *ids(int(random.integers(1, 14)), 100 * seed + turn)]
        kind = ("plain", "break", "cancel", "error", "interrupt", "stop", "whole", "whole")[int(random.integers(8))]
        if kind == "plain":
            keeping.generate(prompt, SamplingParams(max_new_tokens=10), policy=FixedPolicy(PLAIN))
        elif kind in ("break", "cancel"):
            with keeping.stream(prompt, policy=FixedPolicy(TREE)) as stream:
                for _ in range(int(random.integers(1, 5))):
                    next(stream)
                if kind == "cancel":
                    stream.cancel()
                    list(stream)
        elif kind in ("error", "interrupt"):
            fail(keeping, prompt, monkeypatch, int(random.integers(1, 40)), KeyboardInterrupt if kind == "interrupt" else RuntimeError)
        elif kind == "stop":
            text = keeping.generate(prompt, SamplingParams(max_new_tokens=20)).text
            keeping.generate(prompt, SamplingParams(max_new_tokens=20, stop=[text[len(text) // 2 :][:2] or "x"]))
        prompt = [*prompt, *ids(2, turn)] if random.random() < 0.5 else prompt
        kept.append(expect_as_fresh(pair, prompt, params=SamplingParams(max_new_tokens=12), policy=FixedPolicy(TREE)))
        history = [*prompt, *keeping.models.target._committed[len(prompt) :]]
    assert sum(kept) > 50  # or nothing was ever kept


def fail(decoder: Decoder, prompt: list[int], monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]) -> None:
    """Let pass number ``at`` of the request fail half way through its work."""
    import onnxruntime

    run, count = onnxruntime.InferenceSession.run_with_iobinding, 0

    def failing(*arguments: Any) -> None:
        nonlocal count
        count += 1
        run(*arguments)
        if count == at:
            raise error("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", failing)
        try:
            decoder.generate(prompt, SamplingParams(max_new_tokens=30), policy=FixedPolicy(TREE))
        except (EngineFailure, KeyboardInterrupt):
            return
    assert count < at


def test_plain_requests_do_not_spoil_the_draft(pair: tuple[Decoder, Decoder]) -> None:
    """The draft's cache then has fewer tokens than the target's; only the prefix that both have is reused."""
    keeping, _ = pair
    keeping.forget()
    chat = ids(50, 5)
    first = keeping.generate(chat, SamplingParams(max_new_tokens=15), policy=FixedPolicy(TREE))
    longer = [*chat, *first.tokens, *ids(6, 6)]
    plain = keeping.generate(longer, SamplingParams(max_new_tokens=15), policy=FixedPolicy(PLAIN))
    assert plain.stats.cached_prompt_tokens == len(chat) + 14
    kept = expect_as_fresh(pair, [*longer, *plain.tokens, 5], params=SamplingParams(max_new_tokens=15), policy=FixedPolicy(TREE))
    assert len(chat) < kept <= len(chat) + 14


def test_the_same_prompt_again_and_a_shorter_one(pair: tuple[Decoder, Decoder]) -> None:
    pair[0].forget()
    prompt = ids(60, 8)
    options = {"params": SamplingParams(max_new_tokens=9), "policy": FixedPolicy(TREE)}
    assert expect_as_fresh(pair, prompt, **options) == 0
    assert 0 < len(prompt) - expect_as_fresh(pair, prompt, **options) <= 2
    assert 0 < 20 - expect_as_fresh(pair, prompt[:20], **options) <= 2
    assert expect_as_fresh(pair, [prompt[0] + 1, *prompt[1:]], **options) == 0
    assert pair[0].models.target.cache.span <= 128  # and does not go on reading as many slots as the longest needed


def test_another_tenant_does_not_learn_what_was_asked(pair: tuple[Decoder, Decoder]) -> None:
    keeping, _ = pair
    keeping.forget()
    cached = [
        keeping.generate(ids(60, 9), SamplingParams(max_new_tokens=3), policy=FixedPolicy(TREE), tenant=tenant).stats.cached_prompt_tokens
        for tenant in ("a", "b", "b", None, "b")
    ]
    assert (cached[0], cached[1], cached[3], cached[4]) == (0, 0, 0, 0)
    assert cached[2] >= 58


def test_forgetting_is_up_to_the_caller(pair: tuple[Decoder, Decoder]) -> None:
    keeping, _ = pair
    for expected in (0, 58):
        keeping.forget()
        if expected:
            keeping.generate(ids(60, 9), SamplingParams(max_new_tokens=3), policy=FixedPolicy(TREE))
        assert (
            keeping.generate(ids(60, 9), SamplingParams(max_new_tokens=3), policy=FixedPolicy(TREE)).stats.cached_prompt_tokens >= expected
        )


def test_a_request_that_never_began_leaves_a_doubtful_cache_doubtful(pair: tuple[Decoder, Decoder]) -> None:
    keeping, _ = pair
    keeping.generate(ids(30, 4), SamplingParams(max_new_tokens=3))
    keeping.forget()
    assert keeping.generate(ids(30, 4), SamplingParams(deadline=0)).stop == "deadline"
    assert keeping.generate(ids(30, 4), SamplingParams(max_new_tokens=3)).stats.cached_prompt_tokens == 0


def test_numbers_that_are_none_do_not_stay_in_the_draft(pair: tuple[Decoder, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in the rows of a shared system prompt would otherwise be reused for ever."""
    keeping, _ = pair
    prompt = ids(40, 11)
    with monkeypatch.context() as patch:
        fuse = EagleDrafter._fuse

        def spoilt(self: EagleDrafter, *arguments: Any) -> None:
            fuse(self, *arguments)
            self._buffers["waiting"][:] = np.nan

        patch.setattr(EagleDrafter, "_fuse", spoilt)
        keeping.generate(prompt, SamplingParams(max_new_tokens=12), policy=FixedPolicy(TREE))
    assert expect_as_fresh(pair, [*prompt, 7, 8], params=SamplingParams(max_new_tokens=12), policy=FixedPolicy(TREE)) == 0


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_chat_with_the_demo_model(demo_engine: Callable[[str], Path], precision: str) -> None:
    """With the chat template: each answer is tokenized again as part of the next prompt."""
    chat = [{"role": "system", "content": "You are a helpful assistant who answers in one sentence."}]
    with Decoder(demo_engine(precision), threads=2) as keeping, Decoder(demo_engine(precision), threads=2) as fresh:
        for place, question in enumerate(("Why is the sky blue?", "And at night?", "Thank you. What is the capital of France?")):
            chat.append({"role": "user", "content": question})
            mine = keeping.generate(chat, SamplingParams(max_new_tokens=32))
            fresh.forget()
            assert mine.tokens == fresh.generate(chat, SamplingParams(max_new_tokens=32)).tokens
            assert mine.stats.cached_prompt_tokens >= (0 if place == 0 else 30)
            kept, anew = (each.models.target.cache.rows() for each in (keeping, fresh))
            slots = min(kept.shape[-2], anew.shape[-2])  # the last tree may hold tokens behind the end of the answer
            assert slots >= len(keeping.encode(chat)) + len(mine.tokens) - 1
            np.testing.assert_allclose(kept[..., :slots, :], anew[..., :slots, :], rtol=0, atol=0 if precision == "int8" else 2e-4)
            chat.append({"role": "assistant", "content": mine.text})
