"""resps-run: flags -> Decoder -> stdout. The answer goes to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from . import options, sampling_options
from .console import run_command, usage_errors
from .errors import PromptError
from .options import OUTPUT, SAMPLING, option
from .standard_streams import print_json, say
from .text_files import decoded

if TYPE_CHECKING:
    from .decoding.stats import Stats
    from .stream import Result


@click.command(
    cls=options.Command,
    epilog="""\
resps-run --chat "Why is the sky blue?"
resps-run --engine-dir engines/smollm2-135m --temperature 0.7 --seed 1 --stats "Once upon a time"
resps-run --json --policy none --max-new-tokens 64 < prompt.txt""",
)
@click.argument("prompt", required=False)
@option("Prompt", "--chat", is_flag=True, help="Send the prompt as a user turn in the model's chat template.")
@option("Prompt", "--system", help="System message for --chat.")
@options.max_new_tokens(512)
@option(SAMPLING, "--stop", multiple=True, help="End the answer before this text; may be repeated.")
@options.temperature
@sampling_options.truncation
@options.seed("The same seed gives the same text, whatever the tree.", show_default="a new one")
@sampling_options.rules
@sampling_options.constraints
@sampling_options.ends
@sampling_options.answers
@options.draft()
@options.policy()
@options.tree()
@options.engine_dir
@options.backend_and_device
@options.threads()
@options.verify
@option(OUTPUT, "--json", "as_json", is_flag=True, help="Print a JSON object per answer: schema, text, tokens, stop, stats, logprobs.")
@option(OUTPUT, "--no-stream", is_flag=True, help="Print the answer when it is complete.")
@option(OUTPUT, "--stats", is_flag=True, help="Print a summary to stderr.")
@options.general
def command(prompt: str | None, **given: Any) -> None:
    """Continue or answer PROMPT. Lossless: the text is what the target model alone would write.

    With --n above 1 a line of three dashes is printed between the answers. Without PROMPT, or with "-", the prompt is read from standard
    input, in UTF-8. Where the encoding of standard output lacks a character "?" is printed; --json escapes it.
    """
    if given["system"] and not given["chat"]:
        raise click.UsageError("--system needs --chat")
    if given["policy"] and given["tree"]:
        raise click.UsageError("--tree is a policy of its own: give it or --policy")
    params, fixed = _parsed(given)
    text = _read_stdin() if prompt in (None, "-") else str(prompt)
    if not text.strip():
        raise PromptError("the prompt is empty — give some text", "empty")
    system = [{"role": "system", "content": given["system"]}] if given["system"] else []
    asked = [*system, {"role": "user", "content": text}] if given["chat"] else text

    from .decoder import Decoder

    chosen = {name: given[name] for name in ("draft", "backend", "device", "threads")}
    with usage_errors():
        opened = Decoder(given["engine_dir"], policy=fixed or given["policy"], verify=given["verify"] or None, **chosen)
    with opened as decoder:
        if given["count"] > 1:
            for number, result in enumerate(decoder.answers(asked, given["count"], params)):
                _print_answer(result, given, "" if number == 0 or given["as_json"] else "---\n")
            return
        with decoder.stream(asked, params) as stream:
            if given["as_json"] or given["no_stream"]:
                _print_answer(stream.result(), given)
                return
            for chunk in stream:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
            click.echo()
            if given["stats"]:
                say(summary(stream.stats))


def _print_answer(result: Result, given: dict[str, Any], before: str = "") -> None:
    if given["as_json"]:
        print_json(result.as_dict())
    else:
        sys.stdout.write(f"{before}{result.text}\n")
    if given["stats"]:
        say(summary(result.stats))


def _parsed(given: dict[str, Any]) -> tuple[Any, Any]:
    """SamplingParams and the policy of --tree, if that was given. Raises UsageError."""
    from policy import FixedPolicy, TreeSpec

    from .sampling_params import SamplingParams

    with usage_errors():
        given["constraint"] = sampling_options.constraint_of(given)
        params = SamplingParams(**{each.name: given[each.name] for each in fields(SamplingParams) if each.name in given})
        return params, FixedPolicy(TreeSpec.parse(given["tree"])) if given["tree"] else None


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("no prompt: give it as an argument or on standard input")
    try:
        return decoded(sys.stdin.buffer.read()).removesuffix("\n")
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
