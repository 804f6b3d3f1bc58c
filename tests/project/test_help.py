"""--help of every command has titled options, each with a text, and examples with existing commands and options."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from runtime.console import run_command
from runtime.drafters.registry import DRAFTERS, DrafterKind
from runtime.options import Command, general, option
from runtime.policies.registry import POLICIES, PolicyKind, main_policies
from runtime.serve.triton.repository import command as repository
from tests.support.commands import COMMANDS, names

TRAIN = COMMANDS["resps-train"]
assert isinstance(TRAIN, click.Group)
EVERY = {**COMMANDS, **{f"resps-train {name}": each for name, each in TRAIN.commands.items()}, "repository": repository}


def help_of(command: click.Command, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command(command, name, ["--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EVERY)
def test_options_have_titles_and_texts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = EVERY[name]
    sections = re.split(r"^(\w[\w ]*):\n", help_of(command, name, capsys), flags=re.MULTILINE)
    titles = sections[1::2]
    assert titles[-2:] == ["General", "Examples"]
    assert len(titles) == len(set(titles)) > 2
    shown = "".join(sections[::2][:-1])
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert len(re.findall(rf"^  (?:-\w, )?{re.escape(parameter.opts[-1])}\b(?!-)", shown, re.MULTILINE)) == 1, parameter.opts
            assert parameter.help
            assert parameter.help.rstrip(")").endswith("."), parameter.opts


@pytest.mark.parametrize("name", EVERY)
def test_examples_name_real_options(name: str) -> None:
    examples = (EVERY[name].epilog or "").splitlines()
    assert 1 <= len(examples) <= 4
    assert examples[0].startswith(("python -m", name))
    for example in examples:
        words = shlex.split(example)
        if words[0] in COMMANDS:
            assert {word for word in words if word.startswith("--")} <= names(COMMANDS[words[0]]), example


@pytest.mark.parametrize("name", ["resps-run", "resps-bench", "resps-serve"])
def test_drafters_and_policies_are_explained_from_the_registries(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(help_of(EVERY[name], name, capsys).split())
    kinds: list[DrafterKind | PolicyKind] = [*DRAFTERS.values(), *(POLICIES[policy] for policy in main_policies())]
    for kind in kinds:
        assert f"{kind.name}: {kind.summary}" in shown


def test_verbosity_is_set_before_anything_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    levels: list[int] = []
    monkeypatch.setattr("runtime.options.set_verbosity", levels.append)

    @click.command(cls=Command, epilog="x")
    @option("One", "--one", type=click.IntRange(1, 3), default=2, help="One.")
    @general
    def command(one: int) -> None:
        levels.append(one)

    assert run_command(command, "x", ["-vv"]) == 0
    assert levels == [2, 2]
    assert run_command(command, "x", ["--one", "7", "-v"]) == 2
    assert levels == [2, 2, 1]
    assert "--one N  One.  [default: 2; 1<=x<=3]" in help_of(command, "x", capsys)
