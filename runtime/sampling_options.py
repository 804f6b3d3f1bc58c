"""Options of resps-run with the names of SamplingParams' fields. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import FILE, SAMPLING, combined, option
from .sampling_params import MAX_ANSWERS, Constraint
from .text_files import read_text


def _biases(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, float], ...]:
    pairs = []
    for text in texts:
        token, _, bias = text.partition("=")
        try:
            pairs.append((int(token), float(bias)))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a token id and a number, such as 198=-100") from None
    return tuple(pairs)


truncation = combined(
    option(SAMPLING, "--top-k", type=click.IntRange(min=0), default=0, help="Sample among the k likeliest tokens; 0 disables it."),
    option(SAMPLING, "--top-p", type=float, default=1.0, help="Nucleus sampling threshold; 1 disables it."),
    option(SAMPLING, "--min-p", type=float, default=0.0, help="Least probability, as a share of the likeliest token's; 0 disables it."),
    option(SAMPLING, "--typical-p", type=float, default=1.0, help="Probability of the most typical tokens that are kept; 1 disables it."),
)
rules = combined(
    option(SAMPLING, "--presence-penalty", type=float, default=0.0, help="Subtracted from the scores of tokens in the answer; -2 to 2."),
    option(SAMPLING, "--frequency-penalty", type=float, default=0.0, help="The same for each time that they occur; -2 to 2."),
    option(SAMPLING, "--repetition-penalty", type=float, default=1.0, help="Above 1, tokens of prompt and answer become less likely."),
    option(SAMPLING, "--logit-bias", multiple=True, metavar="ID=BIAS", callback=_biases, help="Add to a token's score; may be repeated."),
    option(SAMPLING, "--bad-word", "bad_words", multiple=True, metavar="TEXT", help="Text that the answer may not have; may be repeated."),
)
ends = combined(
    option(SAMPLING, "--min-tokens", type=click.IntRange(min=0), default=0, help="Least tokens of an answer."),
    option(SAMPLING, "--ignore-eos", is_flag=True, help="Go on behind the model's own stop tokens."),
    option(SAMPLING, "--stop-token-id", "stop_token_ids", type=click.IntRange(min=0), multiple=True, help="A token that ends the answer."),
)
answers = option(
    SAMPLING, "--n", "count", type=click.IntRange(1, MAX_ANSWERS), default=1, help="Number of answers; the prompt is read once."
)
constraints = combined(
    option(SAMPLING, "--json-schema", type=FILE, help="A JSON schema that the answer must follow."),
    option(SAMPLING, "--regex", metavar="REGEX", help="A regular expression that the whole answer must match."),
    option(SAMPLING, "--choice", multiple=True, metavar="TEXT", help="A text that the answer may be; may be repeated."),
    option(SAMPLING, "--grammar", type=FILE, help="A grammar (Lark or GBNF) of the answer."),
)


def constraint_of(given: dict[str, Any]) -> Constraint | None:
    """The constraint of these options. Raises UsageError for several, ValueError for one that cannot be."""
    asked = {name: given.pop(name) for name in ("json_schema", "regex", "choice", "grammar")}
    chosen = {name: value for name, value in asked.items() if value not in (None, ())}
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(f'--{name}'.replace('_', '-') for name in chosen)} do not go together")
    for name, value in chosen.items():
        make: Callable[[Any], Constraint] = getattr(Constraint, name)
        return make(read_text(value) if isinstance(value, Path) else value)
    return None
