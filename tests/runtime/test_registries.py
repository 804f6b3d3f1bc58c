"""The registries of drafters and policies: every command offers their entries, and each entry can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

import runtime.bench.cli
import runtime.cli
import runtime.serve.cli
from export.tuning.cli import command as tune
from export.tuning.learning.curriculum import RECIPES
from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder
from runtime.drafters.registry import DRAFTERS, DrafterKind
from runtime.policies.registry import POLICIES, PolicyKind, main_policies


def choices(command: click.Command, option: str) -> list[Any]:
    found = next(parameter for parameter in command.params if parameter.name == option)
    assert isinstance(found.type, click.Choice)
    return list(found.type.choices)


@pytest.mark.parametrize("cli", [runtime.cli, runtime.bench.cli, runtime.serve.cli], ids=lambda module: module.__name__)
def test_every_command_offers_every_drafter(cli: Any) -> None:
    option = next(parameter.name for parameter in cli.command.params if parameter.name in ("draft", "drafts"))
    assert choices(cli.command, option) == list(DRAFTERS)


def test_the_tuner_trains_every_policy_that_learns() -> None:
    learned = [name for name, kind in POLICIES.items() if kind.learned]
    assert set(learned) == set(RECIPES)
    assert set(choices(tune, "policies")) == {*learned, "cost-model", "all"}


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_decodes(echo_engine: Path, name: str) -> None:
    with Decoder(echo_engine, draft=name, threads=1) as decoder:
        plain = decoder.generate([5, 6, 7, 5, 6], policy="none").tokens
        assert decoder.generate([5, 6, 7, 5, 6]).tokens == plain


def test_a_new_drafter_is_one_module_and_one_entry(echo_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = DrafterKind("again", "the n-gram drafter under another name", "ngram", (4, 3, 1), (4, 3, 1))
    monkeypatch.setitem(DRAFTERS, "again", kind)
    with Decoder(echo_engine, draft="again", threads=1) as decoder:
        assert decoder.default_tree == TreeSpec(4, 3, 1)
        assert decoder.generate([5, 6, 7]).tokens == decoder.generate([5, 6, 7], policy="none").tokens


def test_a_new_policy_is_one_module_and_one_entry(echo_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = PolicyKind("small", "small tree", "two nodes", lambda name, setting: FixedPolicy(TreeSpec(2, 1, 1)))
    monkeypatch.setitem(POLICIES, "small", kind)
    assert "small" in main_policies()
    with Decoder(echo_engine, policy="small", draft="eagle", threads=1) as decoder:
        result = decoder.generate([5, 6, 7])
        assert set(result.stats.actions) <= {"2,1,1", str(PLAIN)}
        assert result.tokens == decoder.generate([5, 6, 7], policy="none").tokens
