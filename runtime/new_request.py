"""Makes a request of a prompt and its parameters, after what only the engine knows of them was checked."""

from __future__ import annotations

from collections.abc import Sequence

from policy import Policy

from .decoding.gumbel import MakeSampler
from .decoding.path_rules import PathRules
from .engine import LoadedEngine
from .errors import ParameterError, PromptError
from .request import Request
from .sampling_params import SamplingParams
from .text.tokenizer import Tokenizer


def new_request(
    engine: LoadedEngine, make_sampler: MakeSampler, prompt: Sequence[int], params: SamplingParams, policy: Policy, deadline: float | None
) -> Request:
    """The request. ``deadline``: in perf_counter's seconds. Raises ParameterError."""
    bad_words = check_params(engine, params)
    own = () if params.ignore_eos else engine.choice.manifest.tokens.stop
    stop_tokens = frozenset((*own, *params.stop_token_ids))
    rules = PathRules(params, prompt, stop_tokens, bad_words) if params.changes_scores else None
    return Request(prompt, params, make_sampler(params, rules), policy, stop_tokens, deadline)


def check_params(engine: LoadedEngine, params: SamplingParams) -> list[list[int]]:
    """Returns the tokens of ``bad_words``. Raises ParameterError for what this engine's tokenizer does not have."""
    vocab = engine.choice.manifest.shape.vocab
    for name, tokens in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.biases)):
        for token in tokens:
            if token >= vocab:
                raise ParameterError(f"{name}: {token} is not a token id — ids are whole numbers from 0 to {vocab - 1}", name)
    return [tokens for word in params.bad_words for tokens in _spellings(engine.tokenizer, word, vocab)]


def _spellings(tokenizer: Tokenizer, word: str, vocab: int) -> list[list[int]]:
    """The tokens of a word at the beginning of a text and after a space. The latter only if the space is a part of its first token, as vLLM
    has it: a token of its own for the space would end what was written before."""
    try:
        bare, spaced = (tokenizer.encode_raw(space + word.lstrip()) for space in ("", " "))
    except PromptError as error:
        raise ParameterError(f"bad_words: {word[:80]!r} cannot be divided into tokens: {error}", "bad_words") from None
    found = [bare, spaced] if len(spaced) == len(bare) and spaced[:1] != bare[:1] else [bare]
    for tokens in found:
        if not tokens or max(tokens) >= vocab:
            raise ParameterError(f"bad_words: {word[:80]!r} has no tokens of this model — leave it out", "bad_words")
    return found
