"""``SamplingParams``: the parameters of a request besides its prompt. They are checked here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from operator import index
from typing import Any

MAX_LOGPROBS = 20
"""The most alternatives that ``logprobs`` may request."""

MAX_ANSWERS = 128
"""The most answers to one prompt, as in OpenAI's API."""

MAX_CONSTRAINT, MAX_REGEX, MAX_DEPTH, MAX_LINES = 1 << 16, 1 << 13, 64, 1000
"""The most characters of a constraint and of a regular expression, and the deepest nesting of brackets."""

MAX_LISTED = 1024
"""The most entries of ``logit_bias``, ``stop_token_ids`` and ``bad_words``."""

GREEDY_BELOW = 1e-5
"""Temperatures below this decode greedily: logits divided by less leave float32's range, and only the likeliest token could be drawn."""


@dataclass(frozen=True)
class Constraint:
    """The form that an answer must have. Make it by one of the class methods; whether it can be compiled is found out with an engine.

    ``kind``: json_schema, json_object, regex, choice, grammar or answer. ``text``: the schema or the choices as JSON, the regular
    expression, or the grammar. ``form``: another constraint, which the grammar of an answer calls @form. Raises ValueError and TypeError.
    """

    kind: str
    text: str
    form: Constraint | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("json_schema", "json_object", "regex", "choice", "grammar", "answer"):
            raise ValueError(f"constraint: there is no kind {self.kind!r}")
        if not isinstance(self.text, str):
            raise TypeError(f"constraint: a {self.kind} must be text, not {type(self.text).__name__}")
        most = MAX_REGEX if self.kind == "regex" else MAX_CONSTRAINT
        if len(self.text) > most:
            raise ValueError(f"constraint: the {self.kind} has {len(self.text)} characters, at most {most} are accepted")
        if (
            self.kind == "grammar" and (lines := self.text.count("\n") + 1) > MAX_LINES
        ):  # a rule each, and long chains of rules compile slowly
            raise ValueError(f"constraint: the grammar has {lines} lines, at most {MAX_LINES} are accepted")
        depth = deepest = 0
        for character in self.text if self.kind != "answer" else "":  # whose brackets are not all pairs
            depth += (character in "([{") - (character in ")]}")
            deepest = max(depth, deepest)
        if deepest > MAX_DEPTH:
            raise ValueError(f"constraint: the {self.kind} is nested {deepest} levels deep, at most {MAX_DEPTH} are accepted")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Constraint:
        """JSON that follows a schema, given as an object or as its text."""
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(parsed, ensure_ascii=False, allow_nan=False)
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"constraint: the json_schema is not JSON: {error}") from None
        if not isinstance(parsed, Mapping):
            raise ValueError("constraint: the json_schema must be an object")
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls("json_object", "")

    @classmethod
    def regex(cls, expression: str) -> Constraint:
        """Text that matches a regular expression from its beginning to its end."""
        return cls("regex", expression)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of these texts."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValueError("constraint: a choice must be a sequence of texts that are not empty")
        return cls("choice", json.dumps(list(dict.fromkeys(texts))))

    @classmethod
    def grammar(cls, grammar: str) -> Constraint:
        """Text of a grammar, in Lark's notation as llguidance has it, or in llama.cpp's (GBNF)."""
        return cls("grammar", grammar)

    @classmethod
    def answer(cls, grammar: str, form: Constraint | None = None) -> Constraint:
        """An answer of several parts: llguidance's grammar in Lark's notation, in which @form stands for ``form``."""
        return cls("answer", grammar, form)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to decode one request, and when to stop.

    ``temperature``: 0 to 100; 0 is greedy. ``top_k``: sample among the k likeliest tokens; 0 disables it. ``top_p``: nucleus sampling
    threshold, above 0; 1 disables it. ``seed``: the same seed gives the same text whatever the tree; None uses a random one.
    ``max_new_tokens``: None means up to the end of the context. ``stop``: strings that end the answer; they are not part of its text.
    ``logprobs``: None, or how many of the likeliest alternatives to report with each chosen token's log-probability (0 to 20), both before
    temperature, top_k and top_p. ``deadline``: seconds from the call. The answer then ends after the current round, or without a token
    during prefill. ``rounds``: whether each Chunk has its Round, with the whole tree.

    ``min_p``: keep tokens that are at least this many times as likely as the likeliest; 0 disables it. ``typical_p``: keep the most typical
    tokens up to this total probability (Meister et al. 2022); 1 disables it. Tokens are excluded by top_k, top_p, min_p and typical_p, in
    this order, after temperature. ``presence_penalty``, ``frequency_penalty`` (-2 to 2): subtracted from the scores of tokens in the
    answer, once, and for each time. ``repetition_penalty`` (above 0): divides positive and multiplies negative scores of tokens in prompt
    and answer. ``logit_bias``: added to scores, by token id (-100 to 100). ``min_tokens``: before so many tokens no stop token is chosen
    and no stop string counts. ``ignore_eos``: only ``stop_token_ids`` end the answer, not the model's own stop tokens. ``bad_words``:
    texts that the answer may not have, with or without a space before them, as the tokenizer divides them. ``constraint``: the form that
    the answer must have; only ``stop``, ``stop_token_ids`` and the limits of tokens, time and context cut it. ``shown``: texts of special
    tokens that the answer's text has, too; those of others are left out.

    Raises ValueError or TypeError, which name the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = 512
    stop: Sequence[str] = ()
    logprobs: int | None = None
    deadline: float | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    constraint: Constraint | None = None
    shown: Sequence[str] = ()
    rounds: bool = False

    def __post_init__(self) -> None:
        self._check_draw()
        self._check_end()
        self._check_rules()
        if self.logprobs is not None and not 0 <= _integer("logprobs", self.logprobs) <= MAX_LOGPROBS:
            raise ValueError(f"logprobs must be None or from 0 to {MAX_LOGPROBS}, not {self.logprobs}")
        if not isinstance(self.rounds, bool):
            raise TypeError(f"rounds must be True or False, not {self.rounds!r}")
        if self.deadline is not None and not _number("deadline", self.deadline) >= 0:
            raise ValueError(f"deadline must be 0 seconds or more, not {self.deadline}")

    def _check_draw(self) -> None:
        if not 0 <= _number("temperature", self.temperature) <= 100:
            raise ValueError(f"temperature must be between 0 and 100, not {self.temperature}")
        if not 0 <= _integer("top_k", self.top_k) < 2**31:
            raise ValueError(f"top_k must be 0 (disabled) or more, not {self.top_k}")
        if not 0 < _number("top_p", self.top_p) <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and not 0 <= _integer("seed", self.seed) < 2**64:
            raise ValueError(f"seed must be between 0 and 2**64 - 1, not {self.seed}")
        if not 0 <= _number("min_p", self.min_p) <= 1:
            raise ValueError(f"min_p must be between 0 (disabled) and 1, not {self.min_p}")
        if not 0 < _number("typical_p", self.typical_p) <= 1:
            raise ValueError(f"typical_p must be above 0 and at most 1 (disabled), not {self.typical_p}")

    def _check_end(self) -> None:
        if self.max_new_tokens is not None and _integer("max_new_tokens", self.max_new_tokens) < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}")
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError("stop must be a sequence of non-empty strings")
        object.__setattr__(self, "stop", tuple(self.stop))  # the caller may change its list later
        object.__setattr__(self, "shown", self._listed("shown"))
        if not all(isinstance(text, str) for text in self.shown):
            raise ValueError("shown must be a sequence of strings")
        if not 0 <= _integer("min_tokens", self.min_tokens) < 2**31:
            raise ValueError(f"min_tokens must be 0 or more, not {self.min_tokens}")
        if self.max_new_tokens is not None and self.min_tokens > self.max_new_tokens:
            raise ValueError(f"min_tokens must be at most max_new_tokens ({self.max_new_tokens}), not {self.min_tokens}")
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos must be True or False, not {self.ignore_eos!r}")
        object.__setattr__(self, "stop_token_ids", tuple(_token("stop_token_ids", each) for each in self._listed("stop_token_ids")))

    def _check_rules(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= _number(name, getattr(self, name)) <= 2:
                raise ValueError(f"{name} must be between -2 and 2, not {getattr(self, name)}")
        if not 0 < _number("repetition_penalty", self.repetition_penalty) <= 100:
            raise ValueError(f"repetition_penalty must be above 0 and at most 100, not {self.repetition_penalty}")
        if isinstance(self.logit_bias, Mapping):
            object.__setattr__(self, "logit_bias", tuple(self.logit_bias.items()))
        pairs = []
        for each in self._listed("logit_bias"):
            if not isinstance(each, tuple) or len(each) != 2:
                raise TypeError(f"logit_bias must map token ids to numbers, not hold {each!r}")
            if not -100 <= _number("logit_bias", each[1]) <= 100:
                raise ValueError(f"logit_bias must be between -100 and 100, not {each[1]} for token {each[0]}")
            pairs.append((_token("logit_bias", each[0]), float(each[1])))
        object.__setattr__(self, "logit_bias", tuple(dict(pairs).items()))
        words = self._listed("bad_words")
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError("bad_words must be a sequence of strings with more than white space")
        object.__setattr__(self, "bad_words", words)
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise TypeError(f"constraint must be a Constraint, such as Constraint.regex('[0-9]+'), not {type(self.constraint).__name__}")
        if self.constraint is not None and self.ignore_eos:
            raise ValueError("ignore_eos does not go with a constraint, which says where the answer ends")

    def _listed(self, name: str) -> tuple[Any, ...]:
        """The entries of a field that is a sequence."""
        value = getattr(self, name)
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise TypeError(f"{name} must be a sequence, not {value!r}")
        if len(value) > MAX_LISTED:
            raise ValueError(f"{name} has {len(value)} entries, at most {MAX_LISTED} are accepted")
        return tuple(value)

    def for_answer(self, number: int) -> SamplingParams:
        """The parameters of one of several answers to the same prompt, counted from 0: each has a seed of its own, as in vLLM."""
        return self if self.seed is None or number == 0 else replace(self, seed=(self.seed + number) % 2**64)

    @property
    def biases(self) -> Mapping[int, float]:
        """``logit_bias`` by token id."""
        return dict(self.logit_bias)

    @property
    def changes_scores(self) -> bool:
        """Whether the scores of a token depend on the text before it, or are changed at all."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias or self.min_tokens or self.bad_words or self.constraint)

    @property
    def greedy(self) -> bool:
        """Whether every token is the target's likeliest one."""
        return self.temperature < GREEDY_BELOW


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


def _token(name: str, value: Any) -> int:
    token = _integer(name, value)
    if not 0 <= token < 2**31:
        raise ValueError(f"{name}: {token} is not a token id")
    return token


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value}")
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
