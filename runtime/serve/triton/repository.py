"""Writes a Triton model repository: ``python -m runtime.serve.triton.repository --engine-dir DIR --out REPOSITORY``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ...console import run_command
from ...manifest.load import find_engine_dir

CONFIG = """\
name: {name}
backend: "python"
max_batch_size: 1  # a replica decodes one request at a time
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]  # one process holds the weights; the replicas are inside
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {queue_microseconds}
    max_queue_size: {queue}
  }}
}}
input [
  {{ name: "text_input", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "chat", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "stream", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "sampling_parameters", data_type: TYPE_STRING, dims: [ 1 ], optional: true }}
]
output [
  {{ name: "text_output", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "report", data_type: TYPE_STRING, dims: [ 1 ] }}
]
parameters [
  {{ key: "engine_dir", value: {{ string_value: {engine_dir} }} }},
  {{ key: "replicas", value: {{ string_value: "{replicas}" }} }},
  {{ key: "threads", value: {{ string_value: "{threads}" }} }},
  {{ key: "queue_seconds", value: {{ string_value: "{queue_seconds}" }} }},
  {{ key: "request_seconds", value: {{ string_value: "{request_seconds}" }} }},
  {{ key: "policy", value: {{ string_value: {policy} }} }}
]
"""
MODEL = '''"""Written by runtime.serve.triton.repository. Triton's Python must be able to import the package."""

from runtime.serve.triton.model import TritonPythonModel  # noqa: F401
'''


def write_repository(
    out: Path,
    engine_dir: Path,
    *,
    name: str,
    replicas: int,
    threads: int,
    policy: str,
    queue: int,
    queue_seconds: float,
    request_seconds: float,
) -> Path:
    """The model's folder below ``out``. ``threads`` 0 and ``policy`` "" are the defaults. Raises EngineDirError, OSError."""
    folder = out / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    quoted = {"name": name, "engine_dir": str(find_engine_dir(engine_dir).resolve()), "policy": policy}
    config = CONFIG.format(
        **{key: json.dumps(value, ensure_ascii=False) for key, value in quoted.items()},
        replicas=replicas,
        threads=threads,
        queue=queue,
        queue_seconds=queue_seconds,
        request_seconds=request_seconds,
        queue_microseconds=int(queue_seconds * 1e6),
    )
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (folder / "1" / "model.py").write_text(MODEL, encoding="utf-8")
    return folder


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("engines"), envvar="RESPS_ENGINE_DIR", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The model repository.")
@click.option("--name", default="resps", show_default=True, help="What Triton calls the model.")
@click.option("--replicas", type=click.IntRange(1, 256), default=1, show_default=True, help="Requests that run at once.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, show_default=True, help="0: physical cores, 1 with several replicas.")
@click.option("--policy", default="", help="What decides how big the tree is [default: as tuned].")
@click.option("--queue", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that may wait.")
@click.option("--queue-seconds", type=click.FloatRange(min=0), default=30, show_default=True, help="How long.")
@click.option(
    "--request-seconds",
    type=click.FloatRange(min=0, max=86400),
    default=300,
    show_default=True,
    help="From Triton's queue to the last token; then the answer is cut.",
)
def command(out: Path, **options: Any) -> None:
    """Write a model repository that serves an engine directory."""
    click.echo(write_repository(out, **options))


if __name__ == "__main__":
    sys.exit(run_command(command, "repository"))
