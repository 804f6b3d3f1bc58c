"""The commands of this project, and their options."""

from __future__ import annotations

import click

from export.cli import command as resps_export
from export.training.cli import command as resps_train
from export.tuning.cli import command as resps_tune
from runtime.bench.cli import command as resps_bench
from runtime.cli import command as resps_run
from runtime.serve.cli import command as resps_serve

COMMANDS = {
    "resps-bench": resps_bench,
    "resps-export": resps_export,
    "resps-run": resps_run,
    "resps-serve": resps_serve,
    "resps-train": resps_train,
    "resps-tune": resps_tune,
}


def names(command: click.Command) -> set[str]:
    """Its options; a group's are those of all it holds."""
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return own.union({"--help", "-h"}, *(names(each) for each in getattr(command, "commands", {}).values()))
