"""Options that several commands share, and their ``--help``: options under titles, examples at the end. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from .console import set_verbosity
from .drafters.registry import DRAFTERS, DrafterKind, default_drafter
from .policies.registry import POLICIES, PolicyKind, main_policies

F = TypeVar("F", bound=Callable[..., Any] | click.Command)

ENGINE, SPECULATION, SAMPLING, OUTPUT, GENERAL = "Engine", "Speculation", "Sampling", "Output", "General"
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class TitledOption(click.Option):
    """An option that ``--help`` shows under ``title``."""

    def __init__(self, *arguments: Any, title: str, **settings: Any) -> None:
        if isinstance(settings.get("type"), click.IntRange):
            settings.setdefault("metavar", "N")  # click's own is INTEGER RANGE
        super().__init__(*arguments, **settings)
        self.title = title


class Command(click.Command):
    """A command whose ``--help`` shows its options under their titles. ``epilog`` holds examples, one a line."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"context_settings": CONTEXT_SETTINGS, **settings})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titled: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                titled.setdefault(getattr(parameter, "title", GENERAL), []).append(record)
        for title, records in titled.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line in (self.epilog or "").split("\n"):
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(Command, click.Group):
    """A command with subcommands, each of them a Command."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are written, not of the alphabet

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)


def option(title: str, *names: str, **settings: Any) -> Callable[[F], F]:
    """click.option, shown under ``title``."""
    return click.option(*names, cls=TitledOption, title=title, **settings)


def combined(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """Decorators that go together, in this order."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def numbers(kind: type[int] | type[float], least: float) -> Callable[[click.Context, click.Parameter, str | None], list[Any] | None]:
    """A click callback for an option with numbers and commas between them, all of ``kind`` and at least ``least``, each kept once."""

    def parse(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[Any] | None:
        if text is None:
            return None
        try:
            given = [kind(part) for part in text.split(",")]
        except ValueError:
            raise click.BadParameter(f"{text!r} is not numbers with commas between them, such as 1,2,4") from None
        if not all(least <= number < float("inf") for number in given):
            raise click.BadParameter(f"{text!r} has a number below {least:g} or without end")
        return list(dict.fromkeys(given))

    return parse


def summaries(kinds: Iterable[DrafterKind | PolicyKind]) -> str:
    """The registries' entries as one line of help."""
    return "; ".join(f"{kind.name}: {kind.summary}" for kind in kinds)


def draft(name: str = "draft", note: str = "", **settings: Any) -> Callable[[F], F]:
    """--draft, as the parameter ``name``; ``note`` ends its help."""
    host, gpu, alone = (default_drafter(*setting).name for setting in ((True, "cpu"), (True, "cuda"), (False, "cpu")))
    text = f"What proposes the tree. {summaries(DRAFTERS.values())}. {note}".rstrip()
    default = f"{host} on the CPU, {gpu} on a GPU; {alone} if the engine has no draft model"
    return option(SPECULATION, "--draft", name, type=click.Choice(list(DRAFTERS)), show_default=default, help=text, **settings)


def policy(meaning: str = "What decides how large the tree is", name: str = "--policy", **settings: Any) -> Callable[[F], F]:
    """--policy, or another ``name``. Any value is accepted here: the Decoder knows which policies an engine has."""
    settings = {"metavar": "NAME", "show_default": "what resps-tune chose, else fixed", **settings}
    known = summaries(POLICIES[policy] for policy in main_policies())
    return option(SPECULATION, name, help=f"{meaning}. {known}.", **settings)


def tree(name: str = "tree", note: str = "", **settings: Any) -> Callable[[F], F]:
    """--tree, as the parameter ``name``."""
    text = f"Fixed tree: nodes with the root, levels below it, beams per level. 1,0,0 is plain decoding. {note}".rstrip()
    return option(SPECULATION, "--tree", name, metavar="NODES,DEPTH,WIDTH", help=text, **settings)


def threads(default: str = "usable cores") -> Callable[[F], F]:
    """--threads; ``default`` says what happens without it."""
    return option(ENGINE, "--threads", type=click.IntRange(1, 1024), show_default=default, help="CPU threads of a forward pass.")


def max_new_tokens(default: int) -> Callable[[F], F]:
    """--max-new-tokens"""
    return option(SAMPLING, "--max-new-tokens", type=click.IntRange(min=1), default=default, help="Most tokens of an answer.")


def seed(meaning: str, **settings: Any) -> Callable[[F], F]:
    """--seed of the sampling."""
    return option(SAMPLING, "--seed", type=click.IntRange(0, 2**64 - 1), help=meaning, **settings)


engine_dir = option(
    ENGINE,
    "--engine-dir",
    type=click.Path(path_type=Path),
    default=Path("engines"),
    envvar="RESPS_ENGINE_DIR",
    show_envvar=True,
    help="Engine directory, or a folder that holds exactly one.",
)
verify = option(ENGINE, "--verify", is_flag=True, help="Hash every file again, also those that have not changed since they were hashed.")
backend_and_device = combined(
    option(ENGINE, "--backend", type=click.Choice(["onnxruntime", "tensorrt"]), show_default="as exported", help="What runs the engine."),
    option(ENGINE, "--device", type=click.Choice(["cpu", "cuda"]), show_default="as exported", help="Where it runs."),
)
temperature = option(SAMPLING, "--temperature", type=float, default=0.0, help="0 decodes greedily.")
general = combined(
    option(
        GENERAL,
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        expose_value=False,
        is_eager=True,
        callback=lambda _context, _parameter, level: set_verbosity(level),
        help="Log what is done; -vv also shows tracebacks.",
    ),
    click.version_option(package_name="resps"),
)
