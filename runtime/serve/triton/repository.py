"""Writes a Triton model repository: ``python -m runtime.serve.triton.repository --engine-dir DIR --out REPOSITORY``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ... import options
from ...console import run_command
from ...manifest.load import find_engine_dir
from ...options import OUTPUT, option
from .. import options as serve_options

CONFIG = """\
name: {name}
backend: "python"
max_batch_size: 1  # a lane decodes one request at a time
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]  # one process holds the weights; lanes and replicas are inside
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {queue_microseconds}
    max_queue_size: {queue}
  }}
}}
input [
  {{ name: "request", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "text_input", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "chat", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "stream", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "sampling_parameters", data_type: TYPE_STRING, dims: [ 1 ], optional: true }}
]
output [
  {{ name: "text_output", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "report", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "response", data_type: TYPE_STRING, dims: [ 1 ] }}
]
parameters [
  {{ key: "engine_dir", value: {{ string_value: {engine_dir} }} }},
  {{ key: "replicas", value: {{ string_value: "{replicas}" }} }},
  {{ key: "lanes", value: {{ string_value: "{lanes}" }} }},
  {{ key: "threads", value: {{ string_value: "{threads}" }} }},
  {{ key: "queue_seconds", value: {{ string_value: "{queue_seconds}" }} }},
  {{ key: "request_seconds", value: {{ string_value: "{request_seconds}" }} }},
  {{ key: "tool_calls", value: {{ string_value: {tool_calls} }} }},
  {{ key: "reasoning", value: {{ string_value: {reasoning} }} }},
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
    lanes: int | None,
    threads: int | None,
    policy: str | None,
    queue: int,
    queue_seconds: float,
    request_seconds: float,
    tool_calls: str | None,
    reasoning: str | None,
) -> Path:
    """The model's folder below ``out``. None stands for the default. Raises EngineDirError, OSError."""
    folder = out / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    quoted = {"name": name, "engine_dir": str(find_engine_dir(engine_dir).resolve())}
    quoted |= {"policy": policy or "", "tool_calls": tool_calls or "", "reasoning": reasoning or ""}
    config = CONFIG.format(
        **{key: json.dumps(value, ensure_ascii=False) for key, value in quoted.items()},
        replicas=replicas,
        lanes=lanes or 0,
        threads=threads or 0,
        queue=queue,
        queue_seconds=queue_seconds,
        request_seconds=request_seconds,
        queue_microseconds=int(queue_seconds * 1e6),
    )
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (folder / "1" / "model.py").write_text(MODEL, encoding="utf-8")
    return folder


@click.command(
    cls=options.Command,
    epilog="""\
python -m runtime.serve.triton.repository --engine-dir engines/smollm2-135m --out models
python -m runtime.serve.triton.repository --out models --name chat --lanes 8 --queue 16""",
)
@option(OUTPUT, "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The model repository.")
@option(OUTPUT, "--name", default="resps", help="Name of the model in Triton.")
@options.engine_dir
@options.threads("usable cores, or 1 with several replicas")
@serve_options.lanes
@serve_options.replicas
@options.policy()
@serve_options.queue(least=1)
@serve_options.queue_seconds
@serve_options.request_seconds
@serve_options.tool_calls
@serve_options.reasoning
@options.general
def command(out: Path, **given: Any) -> None:
    """Write a model repository with which Triton serves an engine."""
    click.echo(write_repository(out, **given))


if __name__ == "__main__":
    sys.exit(run_command(command, "repository"))
