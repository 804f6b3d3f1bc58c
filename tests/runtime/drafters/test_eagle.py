"""The EAGLE-3 drafter: answers never change, its cache equals a fresh drafter's, and its trees equal the reference's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, Observation, Outcome, Policy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.decoding.tree import Tree
from runtime.drafters.eagle import EagleDrafter
from tests.support.eagle_reference import RecordingDrafter, ReferenceDrafter, expect_same, expect_well_formed, paths
from tests.support.planted import PlantedDrafter
from tests.support.tiny import VOCAB, random_ids

WIDEST = DEEPEST = 16
# The last ones are wider and deeper than the engine allows. Three have a single node, but only the first is PLAIN.
TREES = (
    *(PLAIN, TreeSpec(1, 3, 0), TreeSpec(1, 2, 2), TreeSpec(2, 1, 1), TreeSpec(6, 3, 3), TreeSpec(16, 5, 4), TreeSpec(40, 6, 8)),
    *(TreeSpec(17, 16, 1), TreeSpec(64, 16, 16), TreeSpec(31, 30, 1), TreeSpec(41, 1, 40), TreeSpec(200, 30, 30)),
)
SAMPLINGS = (
    *(
        SamplingParams(),
        SamplingParams(temperature=0.8, seed=1),
        SamplingParams(temperature=1.0, seed=6),
        SamplingParams(temperature=1.0, top_k=20, seed=3),
    ),
    SamplingParams(temperature=0.8, top_p=0.9, seed=4),
)
PROMPT_ROWS = {"random": 32, "echo": 4, "echo-int8": 32}


class ChangingPolicy:
    """Chooses from ``specs``: in their order, or with a seed at random."""

    def __init__(self, specs: Sequence[TreeSpec], seed: int | None = None) -> None:
        self._specs, self._turn = specs, 0
        self._random = None if seed is None else np.random.default_rng(seed)

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        self._turn += 1
        return self._specs[int(self._random.integers(len(self._specs))) if self._random else min(self._turn, len(self._specs)) - 1]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to do."""


def policies(seed: int) -> list[Policy]:
    """A fixed policy for each of TREES, and one that changes every round."""
    return [*map(FixedPolicy, TREES), ChangingPolicy(TREES, seed)]


def clipped(spec: TreeSpec) -> TreeSpec:
    """``spec`` as the engine clips it."""
    depth, width = min(spec.depth, DEEPEST), min(spec.width, WIDEST)
    return TreeSpec(min(spec.nodes, TreeSpec(1, depth, width).capacity), depth, width)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("name", PROMPT_ROWS)
def test_every_tree_gives_the_plain_answer(
    decoders: Mapping[str, Decoder], plain: Callable[..., tuple[int, ...]], name: str, sampling: SamplingParams
) -> None:
    for seed, length in enumerate((1, 70)):
        prompt = random_ids(length, seed)
        answer, accepted = plain(name, prompt, 20, sampling), 0
        for policy in policies(seed):
            result = decoders[name].generate(prompt, replace(sampling, max_new_tokens=20), policy=policy)
            assert result.tokens == answer
            accepted += result.stats.accepted
        assert accepted > (40 if name.startswith("echo") else -1)  # drafted rows must have been committed


@pytest.mark.parametrize("name", PROMPT_ROWS)
def test_cache_after_many_rounds_is_that_of_a_fresh_drafter(
    decoders: Mapping[str, Decoder], plain: Callable[..., tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Planted trees give long accepted paths, so committed rows come from every slot of a tree and in chunks of every size."""
    prompt, longest = random_ids(45), 0
    answer = plain(name, prompt, 120)
    for seed in range(4):
        random = np.random.default_rng(seed)
        recorded = RecordingDrafter(decoders[name], monkeypatch, PlantedDrafter(len(prompt), answer, VOCAB, seed))
        policy = ChangingPolicy([spec for spec in TREES if spec == clipped(spec)], seed)
        assert decoders[name].generate(prompt, SamplingParams(max_new_tokens=120), policy=policy).tokens == answer
        longest = max(longest, recorded.longest_path)
        root, eagle = 7, recorded.eagle
        eagle.draft(root, TreeSpec(4, 3, 1))  # commits the waiting rows
        rows = eagle._cache.rows().copy()
        assert rows.shape[-2] == len(recorded.tokens) == decoders[name].models.target.length

        eagle.begin()
        start = 0
        while start < len(recorded.tokens):
            stop = min(start + int(random.integers(1, PROMPT_ROWS[name] + 1)), len(recorded.tokens))
            eagle.extend(recorded.tokens[start:stop], recorded.output(start, stop), range(stop - start))
            start = stop
            if start < len(recorded.tokens) and random.random() < 0.3:
                eagle.draft(recorded.tokens[start], TREES[int(random.integers(len(TREES)))])
        eagle.draft(root, TreeSpec(2, 1, 1))
        np.testing.assert_allclose(eagle._cache.rows(), rows, rtol=0, atol=1e-5)
        monkeypatch.undo()
    assert longest > 8


def expect_reference_trees(directory: Path, recorded: RecordingDrafter, rounds: int) -> None:
    """The first ``rounds`` drafted trees equal the reference's, in any order of rows, as beams can have equal scores."""
    reference = ReferenceDrafter(directory)
    real = [each for each in recorded.drafted if each.spec.nodes > 1][:rounds]
    assert real
    for each in real:
        spec = clipped(each.spec)
        expected = reference.tree(recorded.tokens[: each.committed], np.stack(recorded.features[: each.committed]), each.root, spec)
        expect_well_formed(each.tree, each.root, spec)
        assert paths(each.tree) == paths(expected), (each.committed, each.spec)


@pytest.mark.parametrize("name", ["random", "echo"])
@pytest.mark.parametrize("spec", [spec for spec in TREES if spec.nodes > 1], ids=str)
def test_trees_equal_the_reference(
    engines: Mapping[str, Path], decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch, name: str, spec: TreeSpec
) -> None:
    recorded = RecordingDrafter(decoders[name], monkeypatch)
    decoders[name].generate(random_ids(13), SamplingParams(max_new_tokens=14), policy=FixedPolicy(spec))
    expect_reference_trees(engines[name], recorded, 5)


@pytest.mark.parametrize("name", ["random", "echo"])
def test_trees_equal_the_reference_after_any_prompt(
    engines: Mapping[str, Path], decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One token, one chunk, a chunk and a row, several chunks; and lengths at which a tree grows beyond the cache's span."""
    recorded = RecordingDrafter(decoders[name], monkeypatch)
    for length in (1, 2, 31, 32, 33, 58, 64, 65, 120, 127, 200):
        decoders[name].generate(random_ids(length, length), SamplingParams(max_new_tokens=10), policy=FixedPolicy(TreeSpec(30, 6, 4)))
        expect_reference_trees(engines[name], recorded, 2)


@pytest.mark.parametrize("rounds", [1, 15, 16, 17, 18, 40])
def test_tree_after_plain_rounds_equals_the_reference(
    engines: Mapping[str, Path], decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """Committed rows wait during plain rounds, at most as many as one pass takes."""
    policy = ChangingPolicy([TreeSpec(6, 3, 3), *[PLAIN] * rounds, TreeSpec(16, 5, 4)])
    recorded = RecordingDrafter(decoders["echo"], monkeypatch)
    decoders["echo"].generate(random_ids(9), SamplingParams(max_new_tokens=rounds + 14), policy=policy)
    expect_reference_trees(engines["echo"], recorded, 4)


@pytest.mark.parametrize("name", PROMPT_ROWS)
def test_a_request_does_not_depend_on_the_one_before(decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    decoder, specs = decoders[name], (TreeSpec(16, 5, 4), PLAIN, TreeSpec(64, 16, 16), TreeSpec(6, 3, 3))
    recorded, first, prompt = RecordingDrafter(decoder, monkeypatch), [], random_ids(40)
    for turn in range(3):
        decoder.generate(prompt, SamplingParams(max_new_tokens=30), policy=ChangingPolicy(specs, 5))
        if turn == 0:
            first = recorded.drafted
        assert len(recorded.drafted) == len(first)
        for each, same in zip(recorded.drafted, first, strict=True):
            assert (each.committed, each.root, each.spec) == (same.committed, same.root, same.spec)
            expect_same(each.tree, same.tree)
        with decoder.stream(random_ids(100, turn), policy=FixedPolicy(TreeSpec(64, 16, 16))) as abandoned:
            for _ in range(turn + 2):
                next(abandoned)


@pytest.mark.parametrize("name", PROMPT_ROWS)
def test_full_context_ends_the_answer(decoders: Mapping[str, Decoder], plain: Callable[..., tuple[int, ...]], name: str) -> None:
    context = decoders[name].manifest.limits.context
    for left in (1, 2, 3, 17, 40):
        prompt = random_ids(context - left, left)
        answer = plain(name, prompt, 100)
        assert len(answer) == left
        for policy in policies(left):
            assert decoders[name].generate(prompt, SamplingParams(max_new_tokens=100), policy=policy).tokens == answer


@pytest.mark.parametrize("spec", [TreeSpec(6, 3, 3), TreeSpec(40, 6, 8)], ids=str)
def test_nan_features_do_not_change_the_answer(
    engines: Mapping[str, Path], plain: Callable[..., tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, spec: TreeSpec
) -> None:
    """Large activations can overflow half precision."""
    prompt = random_ids(11)
    with Decoder(engines["random"], threads=1) as decoder:
        recorded = RecordingDrafter(decoder, monkeypatch, spoil=True)
        assert decoder.generate(prompt, SamplingParams(max_new_tokens=30), policy=FixedPolicy(spec)).tokens == plain("random", prompt, 30)
        for each in recorded.drafted:
            expect_well_formed(each.tree, each.root, each.spec)


def test_plain_decoding_never_calls_the_draft(decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoders["echo"]
    expected = decoder.generate(random_ids(30), SamplingParams(max_new_tokens=30), policy=FixedPolicy(TreeSpec(6, 3, 3))).tokens
    with monkeypatch.context() as patch:
        for method in ("begin", "extend", "draft"):
            patch.setattr(EagleDrafter, method, lambda *_: pytest.fail("called the draft"))
        assert decoder.generate(random_ids(30), SamplingParams(max_new_tokens=30), policy=FixedPolicy(PLAIN)).tokens == expected
    assert decoder.generate(random_ids(30), SamplingParams(max_new_tokens=30), policy=FixedPolicy(TreeSpec(6, 3, 3))).tokens == expected


def test_more_tokens_may_be_committed_than_a_draft_pass_has_rows(decoders: Mapping[str, Decoder]) -> None:
    models, trees = decoders["echo"].models, []
    drafter, rows = models.model_drafter, 40
    assert isinstance(drafter, EagleDrafter)
    assert drafter._max_rows < rows
    for parts in ([rows], [rows // 2, rows // 2]):
        models.target.cache.truncate(0)
        drafter.begin()
        output, committed = models.target.verify(Tree.chain(random_ids(rows))), range(0)
        for count in parts:
            committed = range(committed.stop, committed.stop + count)
            drafter.extend(output.tree.tokens[committed].tolist(), output, committed)
        tree = drafter.draft(5, TreeSpec(12, 3, 4))
        assert isinstance(tree, Tree)
        trees.append((tree.tokens.tolist(), tree.parent.tolist()))
    assert trees[0] == trees[1]
