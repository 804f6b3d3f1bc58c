"""Sampling on devices (the sample graph) and on the host (Gumbel-max), against a float64 reference and by distribution."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.graphs.sample import build_sample
from runtime.decoding.gumbel import GumbelMaxSampler, scratch_buffers
from runtime.decoding.logprobs import token_logprob
from runtime.decoding.sampling import InverseCdfSampler, TargetOutput, uniforms
from runtime.decoding.tree import Tree
from runtime.decoding.truncation import apply_top_k_top_p
from runtime.sampling_params import SamplingParams

SETTINGS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 7, 1.0), (1.3, 0, 0.8), (0.8, 20, 0.9), (1.0, 1, 1.0), (1.0, 0, 1e-6), (2.0, 10_000, 1.0)]


def session(vocab: int) -> Any:
    return onnxruntime.InferenceSession(build_sample(vocab).SerializeToString(), providers=["CPUExecutionProvider"])


def draw(run: Any, logits: np.ndarray, uniform: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    feeds = {
        "logits": logits[None].astype(np.float32),
        "temperature": np.array([temperature], np.float32),
        "top_k": np.array([top_k]),
        "top_p": np.array([top_p], np.float32),
        "uniforms": np.append(np.float32(0.5), uniform.astype(np.float32)),
        "depth": np.arange(len(uniform))[None],
        "past": np.zeros(1, np.int64),
    }
    return np.asarray(run.run(None, feeds)[0][0])


def distribution(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Temperature, then top-k, then top-p on the remaining tokens, as transformers and vLLM do; float64, by sorting."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    keep = np.zeros(len(weights), bool)
    keep[order[: top_k or None]] = True
    weights = np.where(keep, weights, 0)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    if top_p < 1:
        weights[order[int(np.searchsorted(cumulative, top_p)) + 1 :]] = 0
    return weights / weights.sum()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab", [11, 4096])
def test_graph_equals_the_reference(vocab: int, setting: tuple[float, int, float]) -> None:
    random, run = np.random.default_rng(vocab), session(vocab)
    logits = random.normal(size=(64, vocab)) * 3
    uniform = uniforms(1, 64)
    tokens = draw(run, logits, uniform, *setting)
    for row in range(64):
        cumulative = np.cumsum(distribution(logits[row].astype(np.float32), *setting))
        exact = int(np.searchsorted(cumulative, uniform[row], side="right"))
        close = np.abs(cumulative - uniform[row]).min() < 1e-5  # float32 sums may round to either side of a step this close
        assert tokens[row] == exact or (close and abs(int(tokens[row]) - exact) <= 1)


def test_extreme_uniforms_never_select_a_masked_token() -> None:
    vocab, run = 1000, session(1000)
    logits = np.full((2, vocab), -200.0)
    logits[:, 500] = logits[:, 501] = 0.0
    assert draw(run, logits, np.array([0.0, 1 - 2**-23]), 1.0, 0, 1.0).tolist() == [500, 501]
    logits[:, 0] = -1.0  # outside the nucleus of 0.6, and first in the vocabulary
    assert draw(run, logits, np.array([0.0, 1 - 2**-23]), 1.0, 2, 0.6).tolist() == [500, 501]


def test_draws_have_the_distribution() -> None:
    from scipy.stats import chisquare

    logits, count = np.random.default_rng(3).normal(size=12) * 2, 20_000
    tokens = draw(session(12), np.tile(logits, (count, 1)), uniforms(9, count), 0.9, 8, 0.95)
    wanted = distribution(logits.astype(np.float32), 0.9, 8, 0.95)
    assert set(tokens.tolist()) <= set(np.flatnonzero(wanted).tolist())
    seen = np.bincount(tokens, minlength=12)[wanted > 0]
    assert chisquare(seen, wanted[wanted > 0] * count).pvalue > 1e-3


def drawn(logits: np.ndarray, sampling: SamplingParams, positions: range) -> list[int]:
    """Host draws with the same logits at every position."""
    output = TargetOutput({"logits": logits[None, None].astype(np.float32)}, Tree.chain([0]), 0, 1)
    sampler = GumbelMaxSampler(sampling, scratch_buffers(len(logits)))
    return [sampler(output, 0, position) for position in positions]


def params_of(setting: tuple[float, int, float], seed: int) -> SamplingParams:
    temperature, top_k, top_p = setting
    return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0), (0.9, 8, 0.95), (2.5, 0, 0.8)], ids=str)
def test_host_draws_have_the_distribution(setting: tuple[float, int, float]) -> None:
    from scipy.stats import chisquare

    logits, count = np.random.default_rng(3).normal(size=12) * 2, 20_000
    wanted = distribution(logits.astype(np.float32), *setting)
    tokens = drawn(logits, params_of(setting, 9), range(count))
    assert set(tokens) <= set(np.flatnonzero(wanted).tolist())
    seen = np.bincount(tokens, minlength=12)[wanted > 0]
    assert chisquare(seen, wanted[wanted > 0] * count).pvalue > 1e-3


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab", [11, 4096])
def test_host_keeps_the_tokens_that_the_reference_keeps(vocab: int, setting: tuple[float, int, float]) -> None:
    temperature, top_k, top_p = setting
    logits = (np.random.default_rng(vocab).normal(size=vocab) * (0.1 if vocab > 100 else 3)).astype(np.float32)
    scaled = logits.astype(np.float64) / temperature
    apply_top_k_top_p(scaled, top_k, top_p, scratch_buffers(vocab)[1:])
    np.testing.assert_array_equal(np.isfinite(scaled), distribution(logits, temperature, top_k, top_p) > 0)


def test_host_draws_depend_on_seed_and_position_only() -> None:
    logits, some = np.random.default_rng(4).normal(size=500), range(40)
    tokens = drawn(logits, SamplingParams(temperature=1.0, seed=5), some)
    assert tokens == drawn(logits, SamplingParams(temperature=1.0, seed=5), some)
    assert tokens[7:] == drawn(logits, SamplingParams(temperature=1.0, seed=5), some[7:])
    assert tokens != drawn(logits, SamplingParams(temperature=1.0, seed=6), some)
    assert drawn(logits, SamplingParams(temperature=1.0), some) != drawn(logits, SamplingParams(temperature=1.0), some)
    assert len(set(tokens)) > 30


def test_host_draws_do_not_depend_on_the_last_bits_of_logits() -> None:
    """Logits that differ by about 1e-5, as in another tree, over a large vocabulary with a long tail. The inverse CDF would draw other
    tokens."""
    random = np.random.default_rng(5)
    logits = np.concatenate([random.normal(size=49_151), [9.0]])
    noise = random.normal(size=logits.shape) * 1e-5
    some = range(300)
    assert drawn(logits, SamplingParams(temperature=1.0, seed=1), some) == drawn(
        logits + noise, SamplingParams(temperature=1.0, seed=1), some
    )


@pytest.mark.parametrize("setting", [*SETTINGS, (9.0, 0, 0.9)], ids=str)
def test_a_draw_allocates_no_float64_array_of_the_vocabulary_s_size(setting: tuple[float, int, float]) -> None:
    """Such arrays, allocated for every token, left holes in the heap."""
    vocab = 50_000
    logits = np.random.default_rng(6).normal(size=(1, 1, vocab)).astype(np.float32)
    output = TargetOutput({"logits": logits}, Tree.chain([0]), 0, 1)
    sampler = GumbelMaxSampler(params_of(setting, 1), scratch_buffers(vocab))
    assert peak_of(lambda: sampler(output, 0, 7)) < 4 * vocab
    assert peak_of(lambda: token_logprob(logits[0, 0], 3, 20)) < 8 * vocab


def peak_of(call: Callable[[], object]) -> int:
    """Peak of allocated bytes during a call."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_uniforms_are_seeded_and_below_one() -> None:
    drawn = uniforms(7, 100_000)
    np.testing.assert_array_equal(drawn, uniforms(7, 100_000))
    np.testing.assert_array_equal(drawn[:10], uniforms(7, 10))
    assert 0 <= drawn.min() < 1e-4
    assert 0.9999 < drawn.max() < 1
    assert not np.array_equal(drawn, uniforms(8, 100_000))
    assert not np.array_equal(uniforms(None, 100), uniforms(None, 100))


class OneTable:
    """A memory and an engine that note what is written and run."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def write(self, table: object, values: np.ndarray) -> None:
        self.done.append("write")

    def prepare(self, **_: int) -> SimpleNamespace:
        numbers = {name: np.zeros((1, 1)) for name in ("temperature", "top_k", "top_p", "depth", "past")}
        return SimpleNamespace(inputs=numbers, outputs={"token": np.zeros((1, 1), int)}, run=lambda: self.done.append("run"))


def test_a_request_that_is_refused_writes_nothing_into_the_table_of_another() -> None:
    device = OneTable()
    running, _refused = (InverseCdfSampler(device, device, device, SamplingParams(temperature=1, seed=at), 9) for at in (1, 2))  # type: ignore[arg-type]
    for position in (1, 2):
        running(TargetOutput({}, Tree.chain([0]), 0, 1), 0, position)
    assert device.done == ["write", "run", "run"]
