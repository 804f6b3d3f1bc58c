"""Checks of the arguments of a Decoder and its requests, and the request that is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from policy import FixedPolicy, Policy

from .constraints.state import ConstraintState
from .decoding.gumbel import MakeSampler
from .decoding.path_rules import PathRules
from .drafters.past import Past
from .engine import EngineChoice, LoadedEngine, check_one_of
from .errors import ParameterError, PromptError
from .manifest.schema import Manifest
from .models import check_tree_size
from .policies.registry import main_policies
from .request import Request
from .sampling_params import SamplingParams
from .text.tokenizer import Tokenizer


class Asked(TypedDict, total=False):
    """The keyword arguments of `Decoder.stream`."""

    policy: Policy | str | None
    tenant: str | None
    store: bool


def check_types(params: object, policy: object) -> None:
    """Raises TypeError."""
    if not isinstance(params, SamplingParams):
        raise TypeError(f"params must be SamplingParams, not {type(params).__name__}")
    methods = ("begin", "choose", "observe")
    is_policy = not isinstance(policy, type) and all(callable(getattr(policy, method, None)) for method in methods)
    if not (policy is None or isinstance(policy, str) or is_policy):
        raise TypeError(f"policy must be a name or a Policy, not {type(policy).__name__}")


def check_policy(policy: Policy | str | None, choice: EngineChoice) -> None:
    """Raises ValueError for an unknown policy name, EngineDirError for a fixed tree of a size that the engines were not built for."""
    if isinstance(policy, FixedPolicy):
        check_tree_size(choice.manifest, policy.spec)
    elif isinstance(policy, str):
        learned = choice.tuning.learned if choice.tuning else ()
        check_one_of("policy", policy, tuple(dict.fromkeys((*main_policies(), *learned))))


@dataclass(frozen=True)
class Parts:
    """What an engine makes of a request's parameters. ``bad_words``: their tokens. ``constraint``: at the beginning of an answer."""

    bad_words: Sequence[Sequence[int]]
    constraint: ConstraintState | None


def check_params(engine: LoadedEngine, params: SamplingParams) -> Parts:
    """Raises ParameterError for what this engine's tokenizer does not have, and for a constraint that cannot be compiled."""
    vocab = engine.choice.manifest.shape.vocab
    for name, tokens in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.biases)):
        for token in tokens:
            if token >= vocab:
                raise ParameterError(f"{name}: {token} is not a token id — ids are whole numbers from 0 to {vocab - 1}", name)
    bad_words = [tokens for word in params.bad_words for tokens in _spellings(engine.tokenizer, word, vocab)]
    return Parts(bad_words, None if params.constraint is None else engine.grammars.state(params.constraint))


def new_request(
    manifest: Manifest,
    make_sampler: MakeSampler,
    prompt: Sequence[int],
    params: SamplingParams,
    parts: Parts,
    policy: Policy,
    deadline: float | None,
    past: Past | None,
    tenant: str | None,
) -> Request:
    """The request. ``parts``: of ``params``. ``deadline``: in perf_counter's seconds. ``past``: the past answers that it may look up.
    ``tenant``: for whom."""
    own = () if params.ignore_eos else (token for token in manifest.tokens.stop if token < manifest.shape.vocab)  # others end no answer
    stop_tokens = frozenset((*own, *params.stop_token_ids))
    rules = PathRules(params, prompt, stop_tokens, parts.bad_words, parts.constraint) if params.changes_scores else None
    return Request(prompt, params, make_sampler(params, rules), policy, stop_tokens, deadline, parts.constraint, past, tenant)


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
