"""Compiles constraints to llguidance's grammars, once for each content. llguidance is loaded with the first one."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import DecoderBusy, ParameterError, PromptError
from ..sampling_params import Constraint
from ..text.tokenizer import Tokenizer
from .state import ConstraintState

KEPT = 64
"""Constraints whose compiled form, or refusal, is kept: those used last."""

WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,8}"
"""Between the parts of JSON. Without a bound a small model writes spaces up to the token limit."""

_NOT_FORCED = '%llguidance {"no_forcing": true}'
"""Ends a grammar; the last such line applies. Otherwise llguidance computes the bytes that must come next without a bound: it never
returns from `start: /a+/ /a+/`, whose second part no byte begins. JSON schemas and regular expressions have no such parts."""

SECONDS = 1.0
"""The longest that compiling may take."""

_STACK = 128 << 20
"""Bytes of the compiling thread's stack, of which it touches what it needs. llguidance follows rules of rules recursively: a chain of 3,000
overflows the usual 8 MiB and would end the process."""


_STACK_SIZE = threading.Lock()  # held while the size for new threads is another one
_COMPILING = threading.Semaphore(2)


class Grammars:
    """The constraints of one tokenizer. ``vocab``: the target's. ``stop``: tokens that end an answer. For any thread; compiling lets other
    threads run."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, stop: Sequence[int]) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._stop = [token for token in stop if token < vocab]  # others end no answer
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()  # matchers, and errors of those that were refused

    def state(self, constraint: Constraint) -> ConstraintState:
        """The constraint at the beginning of an answer. Raises ParameterError if it cannot be compiled, and DecoderBusy while two others
        are."""
        with self._lock:
            matcher = self._compiled.get(constraint)
            if matcher is not None:
                self._compiled.move_to_end(constraint)
        if matcher is None:
            matcher = self._compile(constraint)
        if isinstance(matcher, ParameterError):
            raise ParameterError(str(matcher), matcher.field)
        return ConstraintState(matcher.deep_copy(), self._vocab, lambda: self._another(constraint, matcher))

    def _another(self, constraint: Constraint, failed: Any) -> Any:
        """A matcher that shares nothing with ``failed``, whose copies are dead with it."""
        with self._lock:
            if self._compiled.get(constraint) is failed:
                del self._compiled[constraint]
        matcher = self._compile(constraint, keep=False)
        if isinstance(matcher, ParameterError):
            raise matcher
        return matcher

    def _compile(self, constraint: Constraint, keep: bool = True) -> Any:
        """The matcher, or why there is none. With ``keep`` it is kept, also if it comes after SECONDS; until then it is refused."""
        try:
            import llguidance
        except ImportError:
            raise ParameterError("constraint: llguidance is not installed — pip install 'resps[constraints]'", "constraint") from None
        vocabulary = self._loaded(llguidance)

        def compiled() -> Any:
            found: Any
            try:
                found = _matcher(llguidance, vocabulary, constraint)
            except ParameterError as error:
                found = error
            if keep:
                self._keep(constraint, found)
            return found

        try:
            return _in_deep_thread(compiled)
        except TimeoutError:
            late = _refused(constraint, f"it takes longer than {SECONDS:g} s")
            if keep:
                self._keep(constraint, late, instead=False)
            return late

    def _keep(self, constraint: Constraint, found: Any, instead: bool = True) -> None:
        """Keep what was found, ``instead`` of what is there."""
        with self._lock:
            if instead or constraint not in self._compiled:
                self._compiled[constraint] = found
                self._compiled.move_to_end(constraint)
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)

    def _loaded(self, llguidance: Any) -> Any:
        """llguidance's view of the tokenizer, in which a token has the bytes that it adds to an answer."""
        with self._lock:
            if self._vocabulary is None:
                if not self._stop:
                    raise ParameterError("constraint: this model has no stop token, so no answer could end", "constraint")
                wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab, self._stop[0]))
                self._vocabulary = llguidance.LLTokenizer(wrapper, n_vocab=self._vocab, eos_token=list(self._stop))
            return self._vocabulary


class _Vocabulary:
    """What llguidance reads of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab: int, stop: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = stop
        self.tokens = [tokenizer.token_bytes(token, special=True) for token in range(vocab)]
        self.special_token_ids = [token for token in tokenizer.hidden if token < vocab]

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("llguidance divides what is not text by itself")
        try:
            return self._tokenizer.encode_raw(text)
        except PromptError:  # a character that the tokenizer does not know
            return []


def _matcher(llguidance: Any, vocabulary: Any, constraint: Constraint) -> Any:
    """A matcher whose first mask is computed. llguidance's own limits bound its size. Raises ParameterError."""
    try:
        grammar = _grammar(llguidance, constraint)
    except (ValueError, RecursionError) as error:
        raise _refused(constraint, str(error)) from None
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=llguidance.LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise _refused(constraint, matcher.get_error())
    return matcher


def _in_deep_thread(call: Callable[[], Any]) -> Any:
    """The result of ``call`` in a thread with a large stack. Raises TimeoutError after SECONDS; the thread, which nothing can end, goes
    on. Only two run at a time, and DecoderBusy is raised while they do not end."""
    results: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        try:
            results.put(call())
        except BaseException as error:  # the caller gets it
            results.put(error)
        finally:
            _COMPILING.release()

    if not _COMPILING.acquire(timeout=SECONDS):
        raise DecoderBusy("constraint: two others are being compiled — try again")
    with _STACK_SIZE:
        usual = threading.stack_size(_STACK)
        try:
            threading.Thread(target=run, name="resps-compile", daemon=True).start()
        except RuntimeError as error:
            _COMPILING.release()
            raise DecoderBusy(f"constraint: {error} — give the process more threads and memory") from None
        finally:
            threading.stack_size(usual)
    try:
        result = results.get(timeout=SECONDS)
    except Empty:
        raise TimeoutError from None
    if isinstance(result, BaseException):
        raise result
    return result


def _grammar(llguidance: Any, constraint: Constraint) -> str:
    """llguidance's grammar. Raises ValueError."""
    matcher, text = llguidance.LLMatcher, constraint.text
    bounded = {"whitespace_pattern": WHITE_SPACE}
    match constraint.kind:
        case "json_schema":
            return str(matcher.grammar_from_json_schema(text, overrides=bounded))
        case "json_object":
            return str(matcher.grammar_from_json_schema('{"type": "object"}', overrides=bounded))
        case "regex":
            return str(matcher.grammar_from_regex(text))
        case "choice":
            return str(matcher.grammar_from_lark("start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in json.loads(text))))
        case "answer":
            grammars = [{"name": "answer", "lark_grammar": text}]
            if constraint.form is not None:
                form = _grammar(llguidance, constraint.form)
                grammars.append({**(json.loads(form)["grammars"][0] if form.startswith("{") else {"lark_grammar": form}), "name": "form"})
            return json.dumps({"grammars": grammars})
        case _:
            return f"{llguidance.grammar_from('grammar', text)}\n{_NOT_FORCED}\n"


def _refused(constraint: Constraint, reason: str) -> ParameterError:
    line = " ".join(reason.split())
    return ParameterError(f"constraint: the {constraint.kind} cannot be compiled: {line[:300]}", "constraint")
