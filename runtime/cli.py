"""resps-run: flags -> Decoder -> stdout. The answer goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import run_command, set_verbosity, usage_errors
from .drafters.registry import DRAFTERS
from .errors import PromptError

if TYPE_CHECKING:
    from .decoding.stats import Stats


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt", required=False)
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("engines"), envvar="RESPS_ENGINE_DIR", show_default=True,
              show_envvar=True, help="Engine directory, or a parent that holds exactly one.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longest answer.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template as a user's turn.")
@click.option("--system", help="System message for --chat.")
@click.option("--stop", multiple=True, help="End the answer before this text; may be repeated.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="Draw among the k likeliest tokens; 0 is off.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from this much probability; 1 is off.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Same seed, same text, whatever the tree.")
@click.option(
    "--draft",
    type=click.Choice(list(DRAFTERS)),
    help="What proposes the tree [default: eagle, with bets on repeated text on the CPU, if the directory has a draft, else ngram].",
)
@click.option("--backend", type=click.Choice(["onnxruntime", "tensorrt"]), help="What runs the engines [default: what they were made for].")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where they run [default: where they were made for].")
@click.option("--policy", metavar="NAME",
              help="What decides how big the tree is: none, fixed, cost-model, resps, ltd, resps+ltd or another one that was tuned "
              "[default: as tuned].")  # fmt: skip
@click.option("--tree", metavar="NODES,DEPTH,WIDTH", help="Fixed tree; 1,0,0 is plain decoding.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a pass [default: physical cores].")
@click.option("--stats", is_flag=True, help="Print a summary to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: schema, text, tokens, stop, stats, logprobs.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("-v", "--verbose", count=True, help="Say what is done; -vv shows tracebacks.")
@click.version_option(package_name="resps")
def command(prompt: str | None, **options: Any) -> None:
    """Answer PROMPT with the engine, losslessly: the text is what the target model alone would write.

    Without PROMPT, or with "-", the prompt is read from standard input.
    """
    set_verbosity(options["verbose"])
    if options["system"] and not options["chat"]:
        raise click.UsageError("--system needs --chat")
    if options["policy"] and options["tree"]:
        raise click.UsageError("--tree is a policy of its own: give it or --policy")
    params, fixed = _parsed(options)
    text = _read_stdin() if prompt in (None, "-") else str(prompt)
    if not text.strip():
        raise PromptError("the prompt is empty — give some text", "empty")
    system = [{"role": "system", "content": options["system"]}] if options["system"] else []
    asked = [*system, {"role": "user", "content": text}] if options["chat"] else text

    from .decoder import Decoder

    chosen = {name: options[name] for name in ("draft", "backend", "device", "threads")}
    with usage_errors():
        opened = Decoder(options["engine_dir"], policy=fixed or options["policy"], **chosen)
    with (
        opened as decoder,
        decoder.stream(asked, params) as stream,
    ):
        if options["as_json"]:
            click.echo(json.dumps(stream.result().as_dict(), ensure_ascii=False))
        elif options["no_stream"]:
            click.echo(stream.result().text)
        else:
            for chunk in stream:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
            click.echo()
        if options["stats"]:
            click.echo(summary(stream.stats), err=True)


def _parsed(options: dict[str, Any]) -> tuple[Any, Any]:
    """SamplingParams and the policy of --tree, if that was given. Raises UsageError."""
    from policy import FixedPolicy, TreeSpec

    from .sampling_params import SamplingParams

    with usage_errors():
        params = SamplingParams(**{each.name: options[each.name] for each in fields(SamplingParams) if each.name in options})
        return params, FixedPolicy(TreeSpec.parse(options["tree"])) if options["tree"] else None


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("no prompt: give it as an argument or on standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        line = f"standard input is not UTF-8 text (byte {error.start}) — convert it first, for example with iconv"
        raise PromptError(line, "not_text") from None


def summary(stats: Stats) -> str:
    """Four lines for people."""
    share = f"{stats.accepted} of {stats.drafted} drafted tokens accepted" if stats.drafted else "nothing drafted"
    other = max(0.0, stats.decode_seconds - stats.draft_seconds - stats.verify_seconds)
    return "\n".join(
        (
            f"{stats.prompt_tokens} prompt tokens in {stats.prefill_seconds:.2f} s",
            f"{stats.new_tokens} new tokens, {stats.tokens_per_second:.1f} tokens/s",
            f"{stats.tokens_per_cycle:.2f} tokens per cycle over {stats.cycles} cycles, {share}",
            f"decoding {stats.decode_seconds:.2f} s: draft {stats.draft_seconds:.2f}, verify {stats.verify_seconds:.2f}, other {other:.2f}",
        )
    )


def main() -> None:
    """Entry point of resps-run."""
    sys.exit(run_command(command, "resps-run"))
