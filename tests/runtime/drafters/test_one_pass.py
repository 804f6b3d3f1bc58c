"""Drafts that guess all levels in one pass: answers never change, caches equal a fresh drafter's, trees have the likeliest paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy import PLAIN, FixedPolicy, Observation, Outcome, PartialTree, TreeSpec
from runtime import Decoder, EngineDirError, SamplingParams
from runtime.bench.cli import command as bench
from runtime.console import run_command
from runtime.drafters.draft_model import ModelDrafter
from runtime.drafters.growth import LEVEL_PENALTY
from runtime.drafters.one_pass import DFlashDrafter, OnePassDrafter, PEagleDrafter
from runtime.lanes.choose import choose_lanes
from runtime.manifest.load import load_manifest
from tests.support.eagle_engines import export
from tests.support.eagle_reference import RecordingDrafter, expect_well_formed, paths
from tests.support.planted import PlantedDrafter
from tests.support.tiny import VOCAB, random_ids, write_checkpoint
from tests.support.tiny_dflash import BLOCK, MASK, write_dflash
from tests.support.tiny_drafts import write_draft

LEVELS = {"dflash": BLOCK - 1, "p-eagle": 5}
NAMES = tuple(LEVELS)
TREES = (PLAIN, TreeSpec(2, 1, 1), TreeSpec(6, 3, 3), TreeSpec(16, 5, 4), TreeSpec(40, 5, 16), TreeSpec(31, 30, 1), TreeSpec(200, 30, 30))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Engines with drafts of both kinds, for one target. One reads prompts in chunks shorter than a path can be."""
    root = tmp_path_factory.mktemp("one-pass")
    model = write_checkpoint(root / "target")
    write_dflash(root / "dflash", model)
    mask = torch.randn(1, 1, 192, generator=torch.Generator().manual_seed(1))
    config = {"ptd_token_id": MASK, "num_depths": LEVELS["p-eagle"]}
    write_draft(root / "p-eagle", "specforge", model, layers=2, config=config, stored={"mask_hidden": mask})
    return {
        name: export(root / "target", root / name, root / f"{name}-out", "--prefill-rows", str(rows), "--draft-precision", "fp32")
        for name, rows in (("dflash", 4), ("p-eagle", 32))
    }


@pytest.fixture(scope="module")
def decoders(engines: Mapping[str, Path]) -> Iterator[Mapping[str, Decoder]]:
    """A decoder of each engine, and "plain", which never drafts."""
    loaded = {name: Decoder(directory, draft="eagle", threads=1) for name, directory in engines.items()}
    loaded["plain"] = Decoder(engines["dflash"], draft="none", threads=1)
    yield loaded
    for decoder in loaded.values():
        decoder.close()


def drafter_of(decoder: Decoder) -> OnePassDrafter:
    drafter = decoder.models.model_drafter
    assert isinstance(drafter, OnePassDrafter)
    return drafter


class Changing:
    """Chooses from TREES of at most ``depth`` levels at random."""

    def __init__(self, seed: int, depth: int = 30) -> None:
        self._random, self._trees = np.random.default_rng(seed), [spec for spec in TREES if spec.depth <= depth]

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        return self._trees[int(self._random.integers(len(self._trees)))]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to do."""


class Growing(Changing):
    """Also decides about levels and nodes."""

    def should_expand(self, partial_tree: PartialTree) -> bool:
        assert len(partial_tree.scores) == TreeSpec(1, partial_tree.level, partial_tree.spec.width).capacity - 1
        return bool(self._random.random() < 0.7)

    def num_nodes(self, partial_tree: PartialTree) -> int:
        return int(self._random.integers(1, min(partial_tree.spec.nodes, len(partial_tree.scores) + 1) + 1))


def test_manifest_says_how_the_draft_guesses(decoders: Mapping[str, Decoder]) -> None:
    for name, kind in (("dflash", DFlashDrafter), ("p-eagle", PEagleDrafter)):
        draft = decoders[name].manifest.draft
        assert draft is not None
        assert draft.one_pass is not None
        assert (draft.one_pass.kind, draft.one_pass.mask_token, draft.max_depth) == (name, MASK, LEVELS[name])
        assert type(drafter_of(decoders[name])) is kind
        assert draft.check.max_abs_logit_diff < 1e-4
        assert not {"expand", "tree", "draft_lanes"} & decoders[name].manifest.graphs.keys()


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_p=0.9, seed=4)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", NAMES)
def test_every_tree_gives_the_plain_answer(decoders: Mapping[str, Decoder], name: str, sampling: SamplingParams) -> None:
    for seed, length in enumerate((1, 70)):
        prompt, params = random_ids(length, seed), replace(sampling, max_new_tokens=24)
        answer = decoders["plain"].generate(prompt, params).tokens
        for policy in (*map(FixedPolicy, TREES[1:]), Changing(seed), Growing(seed)):
            assert decoders[name].generate(prompt, params, policy=policy).tokens == answer


@pytest.mark.parametrize("name", NAMES)
def test_a_rotated_int8_target_changes_nothing(engines: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    """The draft's own check passed in float32, so its graph reads rotated features and embeddings as it should."""
    root = engines[name].parents[1]
    directory = export(root / "target", root / name, tmp_path, "--precision", "int8", "--draft-precision", "fp32")
    prompt, params = random_ids(20), SamplingParams(max_new_tokens=24)
    with Decoder(directory, draft="none", threads=1) as plain, Decoder(directory, draft="eagle", threads=1) as decoder:
        assert decoder.manifest.rotated
        assert decoder.manifest.draft is not None
        assert decoder.manifest.draft.check.max_abs_logit_diff < 1e-4
        answer = plain.generate(prompt, params).tokens
        for spec in TREES[2:5]:
            assert decoder.generate(prompt, params, policy=FixedPolicy(spec)).tokens == answer


@pytest.mark.parametrize("name", NAMES)
def test_full_context_ends_the_answer(decoders: Mapping[str, Decoder], name: str) -> None:
    context = decoders[name].manifest.limits.context
    for left in (1, 2, 3, 17):
        prompt, params = random_ids(context - left, left), SamplingParams(max_new_tokens=100)
        answer = decoders["plain"].generate(prompt, params).tokens
        assert len(answer) == left
        for spec in (TreeSpec(16, 5, 4), TreeSpec(6, 3, 3)):
            assert decoders[name].generate(prompt, params, policy=FixedPolicy(spec)).tokens == answer


@pytest.mark.parametrize("name", NAMES)
def test_cache_after_many_rounds_is_that_of_a_fresh_drafter(
    decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Planted trees give long accepted paths and rejected branches, so committed rows come from every slot of a tree."""
    prompt, params, longest = random_ids(45), SamplingParams(max_new_tokens=90), 0
    answer = decoders["plain"].generate(prompt, params).tokens
    for seed in range(2):
        random = np.random.default_rng(seed)
        recorded = RecordingDrafter(decoders[name], monkeypatch, PlantedDrafter(len(prompt), answer, VOCAB, seed))
        assert decoders[name].generate(prompt, params, policy=Changing(seed, LEVELS[name])).tokens == answer
        longest = max(longest, recorded.longest_path)
        drafter = drafter_of(decoders[name])
        before = drafter.pool(7, 3, 4)
        rows = drafter._cache.rows().copy()
        assert rows.shape[-2] == len(recorded.tokens) == decoders[name].models.target.length
        drafter.begin()
        start, chunk = 0, decoders[name].manifest.limits.prefill_rows
        while start < len(recorded.tokens):
            stop = min(start + int(random.integers(1, chunk + 1)), len(recorded.tokens))
            drafter.extend(recorded.tokens[start:stop], recorded.output(start, stop), range(stop - start))
            start = stop
            if start < len(recorded.tokens) and random.random() < 0.3:
                drafter.draft(recorded.tokens[start], TREES[int(random.integers(1, len(TREES)))])
        after = drafter.pool(7, 3, 4)
        np.testing.assert_allclose(drafter._cache.rows(), rows, rtol=0, atol=1e-5)
        np.testing.assert_allclose(after[0], before[0], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(after[1], before[1])
        monkeypatch.undo()
    assert longest > 4


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_prefix_drafts_as_a_fresh_prompt_does(decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The prompts share 50 tokens. Trees after the kept prefix are those of a decoder that kept nothing."""
    shared, params = random_ids(50), SamplingParams(max_new_tokens=12)
    prompts = [[*shared, *random_ids(9, seed)] for seed in (1, 2)]
    policy = FixedPolicy(TreeSpec(16, 5, 4))
    drafted: list[list[Any]] = []
    original = ModelDrafter.draft

    def recorded(self: ModelDrafter, root: int, spec: TreeSpec, growth: Any = None) -> Any:
        tree = original(self, root, spec, growth)
        drafted[-1].append(tree)
        return tree

    monkeypatch.setattr(ModelDrafter, "draft", recorded)
    kept: list[int] = []
    begin = ModelDrafter.begin
    monkeypatch.setattr(ModelDrafter, "begin", lambda self, tokens=(): kept.append(begin(self, tokens)) or kept[-1])
    for prompt in (prompts[0], prompts[1]):
        drafted.append([])
        decoders[name].generate(prompt, params, policy=policy)
    assert kept[-1] == 49
    drafted.append([])
    decoders[name].generate(random_ids(30, 77), params, policy=policy)
    drafted.append([])
    decoders[name].generate(prompts[1], params, policy=policy)
    assert kept[-1] == 0
    assert [paths(tree) for tree in drafted[1]] == [paths(tree) for tree in drafted[3]]


def best_paths(log_probs: np.ndarray, tokens: np.ndarray, nodes: int) -> set[tuple[int, ...]]:
    """The ``nodes`` - 1 likeliest paths below the root among all products of marginals [levels, width]."""
    scored = []
    for level in range(1, len(log_probs) + 1):
        for ranks in product(range(log_probs.shape[1]), repeat=level):
            score = sum(float(log_probs[step, rank] - LEVEL_PENALTY) for step, rank in enumerate(ranks))
            scored.append((-score, tuple(int(tokens[step, rank]) for step, rank in enumerate(ranks))))
    return {path for _, path in sorted(scored)[: nodes - 1]}


@pytest.mark.parametrize("name", NAMES)
def test_the_tree_has_the_likeliest_paths(decoders: Mapping[str, Decoder], name: str) -> None:
    """Wide enough that the width excludes none of them."""
    decoder, spec = decoders[name], TreeSpec(10, 4, 5)
    drafter = drafter_of(decoder)
    for length in (3, 20, 40):
        decoder.generate(random_ids(length, length), SamplingParams(max_new_tokens=2), policy=FixedPolicy(TreeSpec(2, 1, 1)))
        decoder.models.target.truncate(0)
        drafter.begin()
        for chunk, output in decoder.models.target.prefill(random_ids(length, length)):
            drafter.extend(chunk, output, range(len(chunk)))
        scores, tokens, parents = drafter.pool(11, 4, 5)
        first = [1, 6, 31, 56]  # of each level's entries
        marginals = np.stack([(scores - scores[parents])[start : start + 5] for start in first]) + LEVEL_PENALTY
        drafter.begin()
        decoder.models.target.truncate(0)
        for chunk, output in decoder.models.target.prefill(random_ids(length, length)):
            drafter.extend(chunk, output, range(len(chunk)))
        tree = drafter.draft(11, spec)
        expect_well_formed(tree, 11, spec)  # type: ignore[arg-type]
        found = {tuple(tree.tokens[row].tolist()[1:]) for row in tree.mask} - {()}  # type: ignore[union-attr]
        assert found == best_paths(marginals, np.stack([tokens[start : start + 5] for start in first]), 10)


@pytest.mark.parametrize("name", NAMES)
def test_nan_features_do_not_change_the_answer(decoders: Mapping[str, Decoder], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    prompt, params = random_ids(11), SamplingParams(max_new_tokens=20)
    answer = decoders["plain"].generate(prompt, params).tokens
    recorded = RecordingDrafter(decoders[name], monkeypatch, spoil=True)
    assert decoders[name].generate(prompt, params, policy=FixedPolicy(TreeSpec(16, 5, 4))).tokens == answer
    for each in recorded.drafted:
        expect_well_formed(each.tree, each.root, each.spec)
    monkeypatch.undo()
    assert decoders[name].generate(prompt, params, policy=FixedPolicy(TreeSpec(16, 5, 4))).tokens == answer


@pytest.mark.parametrize("name", NAMES)
def test_several_lanes_are_refused(engines: Mapping[str, Path], name: str) -> None:
    with pytest.raises(EngineDirError, match=f"a {name} draft has no graph for several lanes"):
        Decoder(engines[name], lanes=4)
    with Decoder(engines[name], draft="ngram", lanes=2) as decoder:
        assert decoder.lanes == 2
    assert choose_lanes(load_manifest(engines[name]), None, 1, 2) == 1


def test_the_doctor_refuses_them_in_one_line(engines: Mapping[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "asked.txt").write_text("the cat sat\n")
    for directory in engines.values():
        arguments = ["--doctor", "--engine-dir", str(directory), "--prompts", str(tmp_path / "asked.txt"), "--threads", "1"]
        assert run_command(bench, "resps-bench", arguments) == 2
        assert "the doctor examines EAGLE-3 drafts" in capfd.readouterr().err
