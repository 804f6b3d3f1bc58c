"""The Decoder on a tiny engine: results, streaming, cancelling, closing, threads, bad arguments."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Chunk, Decoder, DecoderBusy, DecoderClosed, EngineFailure, PromptError, RespsError, SamplingParams
from tests.support.calling_policy import CallingPolicy

PROMPT = "the cat sat on the"


def test_result_has_the_documented_fields(decoder: Decoder) -> None:
    result = decoder.generate(PROMPT, SamplingParams(max_new_tokens=20))
    assert list(result.as_dict()) == ["schema", "text", "tokens", "stop", "stats", "logprobs"]
    assert result.schema == 1
    assert result.stop in ("length", "eos")
    assert result.text == decoder.decode(result.tokens)
    stats = result.stats
    assert stats.new_tokens == len(result.tokens)
    assert stats.prompt_tokens == len(decoder.encode(PROMPT))
    assert stats.tokens_per_cycle == pytest.approx((stats.new_tokens - 1) / stats.cycles)
    assert stats.tokens_per_second == pytest.approx((stats.new_tokens - 1) / stats.decode_seconds)
    assert stats.decode_seconds >= stats.draft_seconds + stats.verify_seconds
    assert stats.prefill_seconds > 0


def test_stream_joins_to_generate_and_ids_and_text_and_messages_agree(decoder: Decoder) -> None:
    whole = decoder.generate(PROMPT, SamplingParams(max_new_tokens=30))
    with decoder.stream(PROMPT, SamplingParams(max_new_tokens=30)) as stream:
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.tokens) == whole.tokens
    assert stream.stop == whole.stop
    assert chunks[0].spec is None
    ids = decoder.encode(PROMPT)
    assert decoder.generate(np.array(ids), SamplingParams(max_new_tokens=30)).tokens == whole.tokens
    messages = [{"role": "user", "content": PROMPT}]
    assert (
        decoder.generate(messages, SamplingParams(max_new_tokens=5)).tokens
        == decoder.generate(decoder.encode(messages), SamplingParams(max_new_tokens=5)).tokens
    )


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(), SamplingParams(temperature=0.9, seed=5), SamplingParams(temperature=1.2, top_k=20, top_p=0.9, seed=6)],
    ids=str,
)
def test_tree_and_drafter_never_change_the_answer(tiny_engine: Path, sampling: SamplingParams) -> None:
    answers = set()
    for draft in ("none", "ngram"):
        with Decoder(tiny_engine, draft=draft, threads=1) as decoder:
            for spec in (PLAIN, TreeSpec(4, 3, 1), TreeSpec(16, 4, 4), TreeSpec(64, 8, 8)):
                answers.add(decoder.generate(PROMPT * 4, replace(sampling, max_new_tokens=60), policy=FixedPolicy(spec)).tokens)
    assert len(answers) == 1


def test_seed_decides(decoder: Decoder) -> None:
    def answer(seed: int | None) -> tuple[int, ...]:
        return decoder.generate(PROMPT, SamplingParams(temperature=1.5, seed=seed, max_new_tokens=40)).tokens

    assert answer(1) == answer(1) != answer(2)
    assert len({answer(None) for _ in range(3)}) == 3


def test_stop_token_ends_the_answer_and_is_not_text(decoder: Decoder) -> None:
    tokens = decoder.generate(PROMPT, SamplingParams(max_new_tokens=40)).tokens
    stop = tokens[10]
    end = tokens.index(stop) + 1
    object.__setattr__(decoder.manifest.tokens, "stop", (stop,))
    result = decoder.generate(PROMPT, SamplingParams(max_new_tokens=40))
    assert result.stop == "eos"
    assert result.tokens == tokens[:end]
    assert result.text == decoder.decode(tokens[: end - 1])


def test_stop_string_cuts_text_inside_a_block(decoder: Decoder) -> None:
    whole = decoder.generate(PROMPT, SamplingParams(max_new_tokens=40))
    middle = whole.text[len(whole.text) // 2 :][:3]
    result = decoder.generate(PROMPT, SamplingParams(max_new_tokens=40, stop=["never there", middle]))
    assert result.stop == "stop_string"
    assert result.text == whole.text[: whole.text.index(middle)]
    assert result.tokens == whole.tokens[: len(result.tokens)]
    assert middle in decoder.decode(result.tokens)


def test_context_ends_the_answer(decoder: Decoder) -> None:
    context = decoder.manifest.limits.context
    result = decoder.generate([5] * (context - 3), SamplingParams(max_new_tokens=50))
    assert len(result.tokens) == 3 or result.stop == "eos"
    with pytest.raises(PromptError, match="no longer context") as caught:
        decoder.generate([5] * context)
    assert caught.value.kind == "too_long"


def test_joined_bytes_of_an_answer_are_its_text(decoder: Decoder) -> None:
    for temperature in (0.0, 1.5):  # of a random model: parts of characters, and no UTF-8 at all
        result = decoder.generate(PROMPT, SamplingParams(temperature=temperature, seed=3, max_new_tokens=60))
        joined = b"".join(decoder.token_bytes(token) for token in result.tokens)
        assert joined.decode("utf-8", "replace") == result.text
    for wrong in (-1, decoder.manifest.shape.vocab, 2**70, 1.5, True, "a", None):
        with pytest.raises(ValueError, match="not a token id"):
            decoder.token_bytes(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{wrong!r} is not a token id"):
            decoder.decode([5, wrong])  # type: ignore[list-item]
    assert decoder.decode(np.array(result.tokens)) == decoder.decode(iter(result.tokens)) == result.text  # type: ignore[arg-type]


def test_second_stream_is_refused_until_the_first_is_over(decoder: Decoder) -> None:
    stream = decoder.stream(PROMPT)
    with pytest.raises(DecoderBusy):
        decoder.generate(PROMPT)
    next(stream)
    with pytest.raises(DecoderBusy):
        decoder.stream(PROMPT)
    stream.close()
    assert list(stream) == []
    assert stream.stop == "cancelled"
    assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=3)).stats.new_tokens > 0


def test_breaking_out_of_a_loop_frees_the_decoder_at_once(decoder: Decoder) -> None:
    gc.disable()
    try:
        for _ in decoder.stream(PROMPT):
            break
        assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=2)).stats.new_tokens > 0
        decoder.stream(PROMPT)  # dropped without a single step
        assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=2)).stats.new_tokens > 0
    finally:
        gc.enable()


def test_cancel_takes_effect_within_one_round_and_leaves_a_correct_beginning(decoder: Decoder) -> None:
    whole = decoder.generate(PROMPT, SamplingParams(max_new_tokens=60))
    with decoder.stream(PROMPT, SamplingParams(max_new_tokens=60)) as stream:
        came = [next(stream), next(stream)]
        threading.Thread(target=stream.cancel).start()
        came += [chunk for chunk in stream if chunk.tokens]
    tokens = [token for chunk in came for token in chunk.tokens]
    assert len(came) <= 3
    assert tuple(tokens) == whole.tokens[: len(tokens)]
    assert stream.stop == "cancelled"


def test_cancel_during_prefill(decoder: Decoder) -> None:
    with decoder.stream([5, 6] * 100) as stream:
        stream.cancel()
        assert list(stream) == []
    assert stream.stop == "cancelled"
    assert stream.stats.new_tokens == 0


def test_close_from_another_thread_while_streaming(tiny_engine: Path) -> None:
    decoder = Decoder(tiny_engine, threads=1)
    stream = decoder.stream(PROMPT, SamplingParams(max_new_tokens=200))
    next(stream)
    closer = threading.Thread(target=decoder.close)
    closer.start()
    rest = list(stream)
    closer.join(timeout=30)
    assert not closer.is_alive()
    assert stream.stop in ("cancelled", "eos", "length")
    assert all(isinstance(chunk, Chunk) for chunk in rest)
    decoder.close()
    with pytest.raises(DecoderClosed):
        decoder.generate(PROMPT)


def test_two_threads_race_for_one_decoder(decoder: Decoder) -> None:
    expected, outcomes = decoder.generate(PROMPT, SamplingParams(max_new_tokens=10)).tokens, []

    def ask() -> None:
        try:
            outcomes.append(decoder.generate(PROMPT, SamplingParams(max_new_tokens=10)).tokens)
        except DecoderBusy:
            outcomes.append(None)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    assert set(outcomes) <= {expected, None}
    assert expected in outcomes
    assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=10)).tokens == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("policy")], ids=repr)
def test_an_error_in_the_middle_leaves_the_decoder_usable(decoder: Decoder, error: BaseException) -> None:
    """The policy raises, as Ctrl-C in a round does."""

    def fail() -> None:
        raise error

    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=20)).tokens
    with pytest.raises(type(error)):
        decoder.generate(PROMPT, SamplingParams(max_new_tokens=20), policy=CallingPolicy(fail))
    assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=20)).tokens == expected


def test_failing_pass_is_an_engine_failure(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def broken(*_: Any) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", broken)
        with pytest.raises(EngineFailure, match="device lost"):
            decoder.generate(PROMPT)
    assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=3)).tokens


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        *(("", "empty"), ([], "empty"), ("caf\udce9", "not_text"), ([{"role": "user"}], "messages")),
        *((b"the cat", "not_text"), (bytearray(b"a"), "not_text"), (None, "not_text"), (5, "not_text")),
        ({"role": "user", "content": "one message"}, "messages"),
        *((ids, "token_ids") for ids in ([320], [-1], [2**70], [1.5], [True], ["a"], [None], np.array([[5]]), np.array([5.0]))),
    ],
    ids=repr,
)
def test_bad_prompts_fail_at_the_call(decoder: Decoder, prompt: Any, kind: str) -> None:
    with pytest.raises(PromptError) as caught:
        decoder.stream(prompt)
    assert caught.value.kind == kind
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RespsError)
    assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=2)).tokens


@pytest.mark.parametrize("bad", [{"params": {"max_new_tokens": 5}}, {"params": 5}, {"policy": 5}, {"policy": FixedPolicy}], ids=str)
def test_arguments_of_another_kind_fail_at_the_call(decoder: Decoder, bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(bad))):
        decoder.stream(PROMPT, **bad)


def test_without_a_limit_the_answer_fills_the_context(decoder: Decoder) -> None:
    whole = decoder.generate(PROMPT, SamplingParams(max_new_tokens=None))
    assert whole == replace(decoder.generate(PROMPT, SamplingParams(max_new_tokens=1 << 20)), stats=whole.stats)
    assert whole.stop == "eos" or len(whole.tokens) == decoder.manifest.limits.context - whole.stats.prompt_tokens


@pytest.mark.parametrize("bad", [{"draft": "oracle"}, {"threads": 0}], ids=str)
def test_bad_construction(tiny_engine: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Decoder(tiny_engine, **bad)


def test_calls_are_reused_from_round_to_round(decoder: Decoder) -> None:
    policy = FixedPolicy(PLAIN)
    decoder.generate(PROMPT, SamplingParams(max_new_tokens=50), policy=policy)
    calls = decoder.models.target._engine._calls  # type: ignore[attr-defined]
    before = {key: id(call) for key, call in calls.items()}
    decoder.forget()
    decoder.generate(PROMPT, SamplingParams(max_new_tokens=50), policy=policy)
    assert {key: id(call) for key, call in calls.items()} == before
