"""The same load through HTTP on this server and on llama.cpp's, by NVIDIA's AIPerf: one server after the other.

    python -m scripts.peers.through_http --engine-dir FP32_DIR --work DIR --clients 1,8

Float32, greedy, the first turns of runtime/bench/mixed.jsonl again and again, 64 tokens an answer. AIPerf runs beside the servers, so its
own processes take a part of the cores. Prints a table.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx

from runtime.options import numbers
from scripts.peers.environments import PeerUnavailable, last_line, python_of
from scripts.peers.models.files import model_file

ROOT = Path(__file__).resolve().parents[2]
MODEL, TOKENS, LANES = "smollm2-135m", 64, 8
START_SECONDS, RUN_SECONDS = 300.0, 600.0
OURS = "from runtime.serve.cli import main; main()"
COLUMNS = {
    "tokens/s": ("output_token_throughput", ("avg",)),
    "first token, ms (median, p99)": ("time_to_first_token", ("p50", "p99")),
    "between tokens, ms (median, p99)": ("inter_token_latency", ("p50", "p99")),
    "acceptance length": ("spec_decode_token_weighted_acceptance_length", ("avg",)),
    "drafts accepted, %": ("spec_decode_overall_draft_acceptance_rate", ("avg",)),
}


@contextmanager
def served(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """Run a server until it is not needed. Raises PeerUnavailable if it does not answer."""
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT) as process:
        try:
            end = time.monotonic() + START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise PeerUnavailable(f"{command[0]} does not serve: {last_line(log.read_text())}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        return any(httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200 for path in ("/readyz", "/health"))
    except httpx.TransportError:
        return False


def tokenizer(engine_dir: Path, work: Path) -> Path:
    """The engine's tokenizer as transformers stores one, for AIPerf."""
    directory = work / "tokenizer"
    directory.mkdir(exist_ok=True)
    shutil.copy(engine_dir / "tokenizer.json", directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return directory


def aiperf(work: Path, port: int, clients: int, requests: int) -> dict[str, Any]:
    """What AIPerf found, by metric."""
    prompts, out = work / "mixed.jsonl", work / f"aiperf-{port}-{clients}"
    questions = (ROOT / "runtime/bench/mixed.jsonl").read_text().splitlines()
    prompts.write_text("".join(json.dumps({"text": json.loads(line)["turns"][0]}) + "\n" for line in questions))
    place = ["--url", f"http://127.0.0.1:{port}", "--tokenizer", str(work / "tokenizer"), "--input-file", str(prompts)]
    load = ["--concurrency", str(clients), "--request-count", str(requests), "--warmup-request-count", str(2 * clients)]
    extra = [part for each in ("temperature:0", "ignore_eos:true") for part in ("--extra-inputs", each)]
    form = ["--endpoint-type", "chat", "--streaming", "--custom-dataset-type", "single_turn", "--osl", str(TOKENS), "--ui", "none"]
    tool = python_of(work, "aiperf").parent / "aiperf"
    line = [str(tool), "profile", "--model", MODEL, *place, *load, *extra, *form, "--use-server-token-count", "--artifact-dir", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=RUN_SECONDS)
    found = sorted(out.rglob("profile_export_aiperf.json"))
    if done.returncode != 0 or not found:
        raise PeerUnavailable(f"AIPerf failed: {last_line(done.stderr or done.stdout)}")
    report: dict[str, Any] = json.loads(found[-1].read_text())
    return report


def row(name: str, clients: int, report: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [name, str(clients)]
    for metric, parts in COLUMNS.values():
        values = report.get(metric) or {}
        cells.append(", ".join(f"{values[part]:.4g}" for part in parts) if values else "-")
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True, resolve_path=True), required=True, help="In float32.")
@click.option("--work", type=click.Path(path_type=Path, resolve_path=True), required=True, help="Keeps environments and models.")
@click.option("--clients", callback=numbers(int, 1), default="1,8", show_default=True)
@click.option("--requests", type=click.IntRange(1), default=6, show_default=True, help="Of each client.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def main(engine_dir: Path, work: Path, clients: list[int], requests: int, threads: int) -> None:
    """Compare this server with llama.cpp's through HTTP."""
    llama = [str(python_of(work, "xllamacpp")), str(Path(__file__).with_name("llama_server.py")), str(model_file(work, "gguf-F32"))]
    python_of(work, "aiperf")
    tokenizer(engine_dir, work)
    click.echo(f"| server | clients | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 2)}")
    for name in ("resps", "llama.cpp"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        own = ["--engine-dir", str(engine_dir), "--model-name", MODEL, "--port", str(port), "--threads", str(threads)]
        own += ["--lanes", str(LANES), "--past-mib", "0"]  # questions come again, and past answers would be their drafts
        ours = [sys.executable, "-c", OURS, *own, "--per-request-spec-decode-metrics"]
        with served(ours if name == "resps" else [*llama, str(port), str(threads), str(LANES)], port, work / f"{name}.log"):
            for each in clients:
                click.echo(row(name, each, aiperf(work, port, each, requests * each)))


if __name__ == "__main__":
    main()
