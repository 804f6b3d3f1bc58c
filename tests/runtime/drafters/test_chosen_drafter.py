"""Which drafter and which tree an engine directory and the command line choose, and manifests without a working draft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from policy import FixedPolicy, TreeSpec
from runtime import Decoder, EngineDirError, SamplingParams
from runtime.cli import command
from runtime.console import run_command
from runtime.drafters.eagle import EagleDrafter
from runtime.drafters.ngram import NgramDrafter
from runtime.drafters.none import NoDrafter
from runtime.drafters.suffix import SuffixDrafter
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from tests.support.tiny import random_ids

WIDEST = DEEPEST = 16


def test_directory_decides_the_drafter(engines: Mapping[str, Path], tiny_engine: Path) -> None:
    for directory, choice, kind in (
        (engines["echo"], None, SuffixDrafter),
        (engines["echo"], "eagle+ngram", SuffixDrafter),
        (engines["echo"], "eagle", EagleDrafter),
        (engines["echo"], "ngram", NgramDrafter),
        (engines["echo"], "none", NoDrafter),
        (tiny_engine, None, NgramDrafter),
    ):
        with Decoder(directory, draft=choice, threads=1) as decoder:
            assert type(decoder.models.drafter) is kind
            assert len(decoder.generate("the cat", SamplingParams(max_new_tokens=9)).tokens) == 9
    with pytest.raises(EngineDirError, match=r"holds no draft model — export with --draft-weights, or choose --draft ngram"):
        Decoder(tiny_engine, draft="eagle")


def test_command_line_chooses_drafter_and_tree(engines: Mapping[str, Path], tiny_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*more: str) -> Any:
        options = ["--engine-dir", str(engines["echo"]), "--json", "--max-new-tokens", "30", "--threads", "1", *more]
        assert run_command(command, "resps-run", [*options, "the cat sat on"]) == 0
        return json.loads(capsys.readouterr().out)

    calls: tuple[list[str], ...] = (
        [],
        ["--draft", "eagle"],
        ["--tree", "40,6,8"],
        ["--draft", "ngram"],
        ["--draft", "none"],
        ["--tree", "1,0,0"],
    )
    default, eagle, large, ngram, none, plain = (answer(*more) for more in calls)
    assert len({tuple(each["tokens"]) for each in (default, eagle, large, ngram, none, plain)}) == 1
    assert default["stats"]["cycles"] <= eagle["stats"]["cycles"] > large["stats"]["cycles"]
    assert large["stats"]["accepted"] > 0
    assert none["stats"]["drafted"] == plain["stats"]["drafted"] == 0

    assert run_command(command, "resps-run", ["--engine-dir", str(tiny_engine), "--draft", "eagle", "the cat"]) == EngineDirError.exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--draft-weights" in err


def edited(source: Path, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(source, copy)
    data = json.loads((copy / FILE_NAME).read_text())
    change(data)
    (copy / FILE_NAME).write_text(json.dumps(data))
    return copy


@pytest.mark.parametrize(
    "change",
    [
        *(lambda data, name=name: data["graphs"].pop(name) for name in ("fuse", "draft", "expand", "tree")),
        lambda data: data["graphs"]["fuse"]["outputs"].pop("hidden"),
        lambda data: data["graphs"]["draft"]["inputs"].pop("write"),
        lambda data: data["graphs"]["expand"]["inputs"].pop("beam"),
        lambda data: data["graphs"]["expand"]["outputs"].pop("next_pool_parents"),
        lambda data: data["graphs"]["tree"]["outputs"].pop("tree_mask"),
        lambda data: data["draft"].update(capacity=data["limits"]["context"] + WIDEST * (DEEPEST - 1) - 1),
        lambda data: data["draft"].update(max_width=0),
        lambda data: data["draft"].update(max_width=data["draft"]["vocab"] + 1, capacity=1 << 20),
        lambda data: data["draft"].update(max_depth=0),
        lambda data: data["draft"].update(layers=0),
        lambda data: data["draft"].update(capacity="512"),
        lambda data: data["draft"].pop("check"),
    ],
)
def test_manifests_without_a_working_draft_are_rejected(
    engines: Mapping[str, Path], tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    directory = edited(engines["random"], tmp_path / "engine", change)
    with pytest.raises(EngineDirError, match=r"^[^\n]* is malformed: [^\n]*(graphs|draft)[^\n]* — export again: resps-export [^\n]*$"):
        Decoder(directory)


def test_manifest_with_the_smallest_capacity_or_without_a_draft_is_accepted(engines: Mapping[str, Path], tmp_path: Path) -> None:
    def tight(data: dict[str, Any]) -> None:
        data["draft"]["capacity"] = data["limits"]["context"] + WIDEST * (DEEPEST - 1)

    directory = edited(engines["random"], tmp_path / "tight", tight)
    with Decoder(directory, threads=1) as decoder:
        prompt = random_ids(decoder.manifest.limits.context - 20)
        assert len(decoder.generate(prompt, policy=FixedPolicy(TreeSpec(64, 16, 16))).tokens) == 20
    directory = edited(engines["random"], tmp_path / "without", lambda data: data.update(draft=None))
    assert load_manifest(directory).draft is None
    with Decoder(directory, threads=1) as decoder:
        assert decoder.draft == "ngram"


def test_the_default_tree_is_smaller_beside_quantized_targets(decoders: Mapping[str, Decoder]) -> None:
    """Each row costs more there, so a tree that is faster in fp32 is not."""
    for decoder in decoders.values():
        chunks = list(decoder.stream(random_ids(20, 1), SamplingParams(max_new_tokens=12)))
        nodes = {chunk.spec.nodes for chunk in chunks if chunk.spec is not None}
        assert max(nodes) == (3 if decoder.manifest.precision == "int8" else 5)
