"""Copies an engine's tuning into the folder of its draft, so that every later export with this draft starts with it.

resps-tune --engine-dir engines/smollm2-135m
python -m scripts.lab.bundle_tuning --engine-dir engines/smollm2-135m --draft export/drafts/smollm2-135m
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from export.directory.bundled_tuning import write_bundled
from runtime.console import run_command
from runtime.manifest.load import find_engine_dir, load_manifest
from scripts import options


@click.command()
@options.engine_dir
@click.option("--draft", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="Checkpoint of the draft.")
@click.option("--policy", help="Bundle another tuned policy as the chosen one [default: the one that resps-tune chose].")
def main(engine_dir: Path, draft: Path, policy: str | None) -> None:
    """Copy the tuning of ENGINE_DIR into DRAFT."""
    directory = find_engine_dir(engine_dir)
    manifest = load_manifest(directory)
    if manifest.tuning is None or manifest.draft is None or manifest.tensorrt is not None:
        raise click.UsageError(f"{directory} is not a tuned engine for the CPU with a draft")
    tuning = dataclasses.replace(manifest.tuning, policy=policy or manifest.tuning.policy)
    if tuning.policy not in ("none", "fixed", "cost-model", *tuning.learned):
        raise click.UsageError(f"{policy} was not tuned, only {', '.join(('cost-model', *tuning.learned))}")
    click.echo(f"{write_bundled(draft, manifest.precision, tuning, directory)}: {tuning.policy}")


if __name__ == "__main__":
    sys.exit(run_command(main, "bundle_tuning"))
