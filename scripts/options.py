"""The option --engine-dir of the programs in scripts/ and tests/stress."""

from __future__ import annotations

from pathlib import Path

import click

ENGINE_DIR = click.Path(path_type=Path, exists=True, file_okay=False)

engine_dir = click.option("--engine-dir", type=ENGINE_DIR, required=True, help="Engine directory.")
engine_dirs = click.option("--engine-dir", "engine_dirs", type=ENGINE_DIR, multiple=True, required=True, help="May be repeated.")
