"""Engine calls that fail, are interrupted or return NaN, at every stage: a typed error, correct tokens before it, and a usable Decoder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder, DecoderBusy, DecoderClosed, EngineFailure, RespsError, SamplingParams
from runtime.backends.cpu.onnxruntime import OrtCall
from runtime.decoding.gumbel import GumbelMaxSampler
from runtime.decoding.sampling import TargetOutput
from tests.support.calling_policy import CallingPolicy
from tests.support.eagle_engines import export_echo

TREE, PROMPT = FixedPolicy(TreeSpec(12, 4, 3)), list(range(5, 25))
SAMPLED = SamplingParams(temperature=0.9, seed=4)
TYPICAL = SamplingParams(temperature=0.9, seed=4, typical_p=0.5)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    with Decoder(export_echo(tmp_path_factory.mktemp("faults"), "--prefill-rows", "8"), threads=1) as decoder:
        yield decoder


def spoil(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, graph: str, at: int, fault: BaseException | Callable[[OrtCall], None]) -> None:
    """Let call number ``at`` of a graph raise ``fault`` after half of its work, or let ``fault`` change its outputs. On the host "sample"
    is not a graph; there the sampler fails."""
    if graph == "sample":
        _spoil_draws(monkeypatch, at, fault)
        return
    session, run, count = decoder._engine.backend._sessions[graph], OrtCall.run, 0  # type: ignore[attr-defined]

    def faulty(self: OrtCall) -> None:
        nonlocal count
        run(self)
        if self._session is session:
            count += 1
            if count == at and isinstance(fault, BaseException):
                raise fault
            if count >= at and callable(fault):
                fault(self)

    monkeypatch.setattr(OrtCall, "run", faulty)


def _spoil_draws(monkeypatch: pytest.MonkeyPatch, at: int, fault: BaseException | Callable[[OrtCall], None]) -> None:
    draw, count = GumbelMaxSampler.__call__, 0

    def faulty(self: GumbelMaxSampler, output: TargetOutput, row: int, position: int) -> int:
        nonlocal count
        token, count = draw(self, output, row, position), count + 1
        if count == at and isinstance(fault, BaseException):
            raise fault
        return token

    monkeypatch.setattr(GumbelMaxSampler, "__call__", faulty)


def answer(decoder: Decoder, sampling: SamplingParams = SamplingParams()) -> tuple[int, ...]:
    return decoder.generate(PROMPT, replace(sampling, max_new_tokens=40), policy=TREE).tokens


def until_it_fails(decoder: Decoder, sampling: SamplingParams = SamplingParams()) -> tuple[tuple[int, ...], BaseException]:
    """The tokens emitted before the failure, and the error."""
    tokens: list[int] = []
    with decoder.stream(PROMPT, replace(sampling, max_new_tokens=40, logprobs=1), policy=TREE) as stream:
        with pytest.raises((RespsError, KeyboardInterrupt)) as caught:
            tokens.extend(token for chunk in stream for token in chunk.tokens)
        assert stream.stop == ("cancelled" if isinstance(caught.value, KeyboardInterrupt) else "error")
    return tuple(tokens), caught.value


# Prefill is three passes of the target (eight rows each), each with one of fuse; the first choice is prefill's.
STAGES = [
    ("target", 1, "prefill"),
    ("target", 3, "prefill"),
    ("fuse", 1, "prefill"),
    ("draft", 1, "prefill"),  # tokens that no longer fit wait no longer
    ("sample", 1, "sample"),
    ("draft", 4, "draft"),
    ("expand", 2, "draft"),
    ("tree", 3, "draft"),
    ("target", 4, "verify"),
    ("target", 8, "verify"),
    ("sample", 5, "sample"),
    ("fuse", 5, "commit"),
]


@pytest.mark.parametrize(("graph", "at", "stage"), STAGES)
def test_a_failing_call_names_its_stage(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, graph: str, at: int, stage: str) -> None:
    expected = answer(decoder, SAMPLED)
    before = decoder.totals.requests.get("error", 0)
    decoder.forget()
    with monkeypatch.context() as patch:
        spoil(decoder, patch, graph, at, EngineFailure("device lost — try again"))
        came, error = until_it_fails(decoder, SAMPLED)
    assert isinstance(error, EngineFailure)
    assert error.stage == stage
    assert str(error) == f"{stage}: device lost — try again"
    assert came == expected[: len(came)]
    assert bool(came) == (stage != "prefill" and (graph, at) != ("sample", 1))
    assert decoder.totals.requests["error"] == before + 1
    assert answer(decoder, SAMPLED) == expected
    assert len({thread.name for thread in threading.enumerate()}) == threading.active_count()


@pytest.mark.parametrize(("graph", "at"), sorted({(graph, at) for graph, at, _ in STAGES}))
def test_ctrl_c_inside_any_call(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, graph: str, at: int) -> None:
    expected = answer(decoder, SAMPLED)
    decoder.forget()
    with monkeypatch.context() as patch:
        spoil(decoder, patch, graph, at, KeyboardInterrupt())
        came, error = until_it_fails(decoder, SAMPLED)
    assert isinstance(error, KeyboardInterrupt)
    assert came == expected[: len(came)]
    assert answer(decoder, SAMPLED) == expected


@pytest.mark.parametrize("owner", ["target", "model_drafter"])
@pytest.mark.parametrize("method", ["commit", "reserve"])
def test_ctrl_c_while_a_cache_changes(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, owner: str, method: str) -> None:
    expected = answer(decoder)
    part = getattr(decoder.models, owner)
    cache = getattr(part, "cache", None) or part._cache
    original, count = getattr(type(cache), method), 0

    def interrupted(self: Any, argument: Any) -> None:
        nonlocal count
        count += self is cache
        if self is cache and count == 3:
            for buffer in self._buffers.values():
                buffer[:] = np.roll(buffer, 7)  # half way
            raise KeyboardInterrupt
        original(self, argument)

    decoder.forget()
    with monkeypatch.context() as patch:
        patch.setattr(type(cache), method, interrupted)
        try:
            decoder.generate([*PROMPT, *PROMPT, *PROMPT], SamplingParams(max_new_tokens=150), policy=TREE)
        except KeyboardInterrupt:
            count = -1
    assert count == -1
    assert answer(decoder) == expected


def nans(call: OrtCall) -> None:
    call.outputs["logits"][:] = np.nan


def one_nan(call: OrtCall) -> None:
    call.outputs["logits"][..., 100] = np.nan


def infinite(call: OrtCall) -> None:
    call.outputs["logits"][..., 100] = np.inf
    call.outputs["next_token"][:] = 100


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED, TYPICAL], ids=["greedy", "sampled", "typical"])
@pytest.mark.parametrize("fault", [nans, one_nan, infinite])
@pytest.mark.parametrize(("at", "stage"), [(3, "prefill"), (4, "verify"), (7, "verify")])
def test_scores_that_are_no_numbers_are_noticed(
    decoder: Decoder,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[OrtCall], None],
    at: int,
    stage: str,
    sampling: SamplingParams,
) -> None:
    expected = answer(decoder, sampling)
    decoder.forget()
    with monkeypatch.context() as patch:
        spoil(decoder, patch, "target", at, fault)
        came, error = until_it_fails(decoder, sampling)
    assert isinstance(error, EngineFailure)
    assert error.stage == stage
    assert "\n" not in str(error)
    assert came == expected[: len(came)]
    assert answer(decoder, sampling) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", ["log_probs", "next_hidden"])
def test_a_draft_without_numbers_guesses_badly_and_no_more(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, output: str, value: float
) -> None:
    expected = answer(decoder)
    for at in (1, 4, 9):
        decoder.forget()
        with monkeypatch.context() as patch:
            spoil(decoder, patch, "draft", at, lambda call: call.outputs[output].fill(value))
            assert answer(decoder) == expected
        assert answer(decoder) == expected


def test_a_round_in_work_keeps_others_out(decoder: Decoder) -> None:
    def ask() -> None:
        with pytest.raises(DecoderBusy):
            decoder.stream(PROMPT)
        with pytest.raises(DecoderBusy):
            decoder.forget()
        with pytest.raises(DecoderBusy):
            decoder.warmup()

    def from_a_thread() -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()

    policy = CallingPolicy(from_a_thread)
    assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=20), policy=policy).tokens
    assert policy.rounds > 3


def test_many_threads_close_while_one_streams(tiny_engine: Path) -> None:
    decoder = Decoder(tiny_engine, threads=1)
    closers = [threading.Thread(target=decoder.close) for _ in range(6)]
    started = CallingPolicy(lambda: [thread.start() for thread in closers])
    result = decoder.generate(PROMPT, SamplingParams(max_new_tokens=300), policy=started)
    for thread in closers:
        thread.join(timeout=30)
    assert result.stop == "cancelled"
    assert started.rounds == 3  # not one more
    assert decoder.totals.requests == {"cancelled": 1}
    with pytest.raises(DecoderClosed):
        decoder.stream(PROMPT)
    for call in (decoder.fork, decoder.warmup, decoder.forget):
        with pytest.raises(DecoderClosed):
            call()


def test_a_signal_handler_closes_in_the_middle_of_a_round(tiny_engine: Path) -> None:
    """The handler runs in the thread that it interrupts, so waiting for the end of the round would be a deadlock."""
    decoder = Decoder(tiny_engine, threads=1)

    def handler(number: int, frame: FrameType | None) -> None:
        decoder.close()

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        result = decoder.generate(
            PROMPT, SamplingParams(max_new_tokens=300), policy=CallingPolicy(lambda: signal.raise_signal(signal.SIGUSR1))
        )
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert result.stop == "cancelled"
    assert decoder.models.target._engine._session is None  # type: ignore[attr-defined]  # freed
    with pytest.raises(DecoderClosed):
        decoder.generate(PROMPT)


def test_cancel_from_another_thread_ends_the_round_in_work(decoder: Decoder) -> None:
    holder: list[Any] = []
    policy = CallingPolicy(lambda: threading.Thread(target=holder[0].cancel).run())
    with decoder.stream(PROMPT, SamplingParams(max_new_tokens=200), policy=policy) as stream:
        holder.append(stream)
        rounds = sum(chunk.spec is not None for chunk in stream)
    assert (stream.stop, rounds, policy.rounds) == ("cancelled", 3, 3)


def test_cancelling_again_and_again_leaves_nothing_behind(decoder: Decoder) -> None:
    expected = answer(decoder)
    threads = threading.active_count()
    for turn in range(50):
        with decoder.stream([*PROMPT, 5 + turn], policy=TREE) as stream:
            next(stream)
            stream.cancel()
    assert decoder.models.target.length < 40
    assert decoder.generate(PROMPT, SamplingParams(max_new_tokens=5), policy=FixedPolicy(PLAIN)).tokens == expected[:5]
    assert threading.active_count() == threads
