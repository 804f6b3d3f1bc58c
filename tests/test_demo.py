"""The real model: parity with transformers, losslessness in fp32 and int8, the cache, the sampled distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.decoding.tree import Tree
from tests.support.planted import DummyRowDrafter, PlantedDrafter
from tests.support.prompts import PROMPTS

SHAPES = (TreeSpec(4, 3, 1), TreeSpec(8, 7, 1), TreeSpec(11, 1, 10), TreeSpec(16, 4, 4), TreeSpec(32, 6, 4), TreeSpec(64, 8, 8))
Engine = Callable[[str], Path]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def decoder(demo_engine: Engine, request: pytest.FixtureRequest) -> Iterator[Decoder]:
    with Decoder(demo_engine(request.param), draft="none", threads=1) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def fp32(demo_engine: Engine) -> Iterator[Decoder]:
    with Decoder(demo_engine("fp32"), draft="none", threads=1) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers on the same dequantized weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from scripts.peers.models.hf_copy import write_hf_directory

    directory = write_hf_directory(tmp_path_factory.mktemp("hf"))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def logits_of(decoder: Decoder, ids: list[int]) -> np.ndarray:
    """All rows of a prompt, [n, V], through verify passes of up to 64 rows."""
    target, rows = decoder.models.target, []
    target.cache.truncate(0)
    for start in range(0, len(ids), 64):
        chunk = ids[start : start + 64]
        rows.append(target.verify(Tree.chain(chunk)).logits.copy())
        target.commit(range(len(chunk)))
    return np.concatenate(rows)


def test_logits_equal_transformers(fp32: Decoder, reference: Any) -> None:
    import torch

    for prompt in PROMPTS[:: len(PROMPTS) // 8][:8]:
        ids = fp32.encode(prompt)
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(logits_of(fp32, ids) - expected).max() <= 1e-3


def test_greedy_tokens_equal_transformers(fp32: Decoder, reference: Any) -> None:
    import torch

    for prompt in PROMPTS[::4]:
        ids = fp32.encode(prompt)
        with torch.no_grad():
            out = reference.generate(torch.tensor([ids]), max_new_tokens=48, attention_mask=torch.ones(1, len(ids)), do_sample=False)
        assert list(fp32.generate(ids, SamplingParams(max_new_tokens=48)).tokens) == out[0, len(ids) :].tolist()


def plant(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, drafter: Any) -> None:
    monkeypatch.setattr(decoder, "models", replace(decoder.models, drafter=drafter))


def test_every_tree_gives_the_plain_answer(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of what tests/stress/check_lossless.py runs in full: adversarial trees against plain decoding with a dummy row."""
    vocab = decoder.manifest.shape.vocab
    for number, prompt in enumerate(PROMPTS[::9]):
        ids = decoder.encode(prompt)
        plant(decoder, monkeypatch, DummyRowDrafter(vocab))
        answer = decoder.generate(ids, SamplingParams(max_new_tokens=40)).tokens
        for seed, shape in enumerate(SHAPES):
            plant(decoder, monkeypatch, PlantedDrafter(len(ids), answer, vocab, 10 * number + seed))
            assert decoder.generate(ids, SamplingParams(max_new_tokens=40), policy=FixedPolicy(shape)).tokens == answer, (prompt, shape)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_logits_are_the_same_bits_for_any_rows_and_any_tree(demo_engine: Engine, precision: str) -> None:
    """Without ordered sums in attention they differ by 1, and so do answers: see docs/design.md, losslessness."""
    random = np.random.default_rng(0)
    with Decoder(demo_engine(precision), draft="none", threads=2) as decoder:
        target, ids = decoder.models.target, decoder.encode(PROMPTS[1])
        expected = logits_of(decoder, ids)
        target.cache.truncate(0)
        position = 0
        while position < len(ids):
            count = min(int(random.integers(1, 7)), len(ids) - position)
            drafter = PlantedDrafter(0, ids, decoder.manifest.shape.vocab, int(random.integers(1 << 30)))
            drafter.extend(ids[:position], None, [])  # type: ignore[arg-type]
            tree = drafter.draft(ids[position], TreeSpec(4 * count, count, 4)) if count > 1 else Tree.chain([ids[position]])
            scores, path = target.verify(tree), [0]
            while position + len(path) < len(ids) and (node := tree.child(path[-1], ids[position + len(path)])) is not None:
                path.append(node)
            np.testing.assert_array_equal(scores.logits[path], expected[position : position + len(path)])
            target.commit(path)
            position += len(path)


def test_committed_cache_equals_a_fresh_prefill(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, ids = decoder.manifest.shape.vocab, decoder.encode(PROMPTS[0])
    plant(decoder, monkeypatch, DummyRowDrafter(vocab))
    answer = list(decoder.generate(PROMPTS[3], SamplingParams(max_new_tokens=40)).tokens)
    ids = decoder.encode(PROMPTS[3])
    plant(decoder, monkeypatch, PlantedDrafter(len(ids), answer, vocab, 3))
    decoder.generate(ids, SamplingParams(max_new_tokens=40), policy=FixedPolicy(TreeSpec(16, 4, 4)))
    length, committed = decoder.models.target.length, decoder.models.target.cache.rows().copy()
    assert length > len(ids)
    decoder.models.target.cache.truncate(0)
    list(decoder.models.target.prefill([*ids, *answer][:length]))
    fresh = decoder.models.target.cache.rows()
    exact = decoder.manifest.precision == "int8"
    np.testing.assert_allclose(committed, fresh, rtol=0, atol=0 if exact else 2e-4)


def test_sampled_tokens_have_the_models_own_distribution(fp32: Decoder) -> None:
    """First sampled token after one prompt over many seeds, drawn through the loop, against softmax of the logits."""
    from scipy.stats import chisquare

    ids = fp32.encode("The best thing about")
    logits = logits_of(fp32, ids)[-1].astype(np.float64)
    wanted = np.exp((logits - logits.max()) / 0.8)
    order = np.argsort(-wanted)[:50]
    probability = np.zeros_like(wanted)
    probability[order] = wanted[order] / wanted[order].sum()
    count = 600
    first = np.array([
        fp32.generate(ids, SamplingParams(temperature=0.8, top_k=50, seed=seed, max_new_tokens=1)).tokens[0] for seed in range(count)
    ])  # fmt: skip
    often = probability * count >= 5
    seen = np.bincount(first, minlength=len(probability))
    assert not seen[probability == 0].any()
    observed, expected = [*seen[often], seen[~often].sum()], [*(probability[often] * count), probability[~often].sum() * count]
    assert chisquare(observed, expected).pvalue > 1e-3


def test_same_seed_same_text_whatever_the_tree(fp32: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling, vocab = SamplingParams(temperature=0.9, top_p=0.95, seed=11), fp32.manifest.shape.vocab
    ids = fp32.encode(PROMPTS[2])
    answer = fp32.generate(ids, replace(sampling, max_new_tokens=32), policy=FixedPolicy(PLAIN)).tokens
    for seed, shape in enumerate(SHAPES[:4]):
        plant(fp32, monkeypatch, PlantedDrafter(len(ids), answer, vocab, seed))
        assert fp32.generate(ids, replace(sampling, max_new_tokens=32), policy=FixedPolicy(shape)).tokens == answer


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_shipped_draft_changes_no_token_and_is_often_right(
    demo_engine: Engine, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Greedy and sampled, against plain decoding with a dummy row; tests/stress/check_lossless.py --drafter eagle runs more of it."""
    with Decoder(demo_engine(precision), threads=1) as decoder:
        assert decoder.draft == "eagle+ngram"
        eagle, tokens, cycles = decoder.models.drafter, 0, 0
        for number, prompt in enumerate(PROMPTS[1:16:9]):
            for sampling in (SamplingParams(), SamplingParams(temperature=1.0, seed=number)):
                plant(decoder, monkeypatch, DummyRowDrafter(decoder.manifest.shape.vocab))
                two_rows = FixedPolicy(TreeSpec(2, 1, 1))  # what was tuned may be plain decoding, which asks no drafter
                answer = decoder.generate(prompt, replace(sampling, max_new_tokens=40), policy=two_rows).tokens
                plant(decoder, monkeypatch, eagle)
                for shape in (TreeSpec(6, 3, 3), TreeSpec(16, 5, 4), TreeSpec(64, 8, 8)):
                    result = decoder.generate(prompt, replace(sampling, max_new_tokens=40), policy=FixedPolicy(shape))
                    assert result.tokens == answer, (prompt, shape, sampling)
                    if shape.nodes == 16 and sampling.temperature == 0:
                        tokens, cycles = tokens + result.stats.new_tokens - 1, cycles + result.stats.cycles
        assert tokens > 1.5 * cycles


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_eight_lanes_answer_as_one_does(demo_engine: Engine, precision: str) -> None:
    with Decoder(demo_engine(precision), lanes=8) as decoder:
        wanted = [
            (prompt, SamplingParams(max_new_tokens=24, **({"temperature": 0.9, "seed": number} if number % 2 else {})))
            for number, prompt in enumerate(PROMPTS[:12])
        ]
        alone = [decoder.generate(*request, policy="none").tokens for request in wanted]
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda request: decoder.generate(*request).tokens, wanted))
        assert results == alone
