"""The form of a model's answers, found out from its templates and its vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from ..errors import PromptError
from ..text.tokenizer import Tokenizer
from .call_format import CallFormat
from .deepseek import DEEPSEEK, DEEPSEEK_V31
from .functions import Function, Tools
from .hermes import HERMES
from .llama import LLAMA
from .mistral import MISTRAL, MISTRAL_ARGS
from .reader import AnswerParser, Reader, Steps
from .reasoning import MARKS, ReasoningMarks, read_reasoning

FORMATS: Mapping[str, CallFormat] = {each.name: each for each in (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, DEEPSEEK, DEEPSEEK_V31)}
"""By name."""
NO_REASONING = "none"

_PROBE = Function("probe_a", "Probes.", {"type": "object", "properties": {"b": {"type": "string", "description": "One."}}})
_USER = {"role": "user", "content": "Probe."}
_RESULT = "result_c"
_ID = "abcdefghi"  # as Mistral's templates want it


@dataclass(frozen=True)
class Template:
    """What a model's chat template knows. ``tools``: to describe functions. ``calls``: turns with a call, and turns of the role tool.
    ``several``: turns with several calls. ``text_arguments``: whether it takes a call's arguments as text. ``null_content``: as in Chat.
    ``system``: turns of the role system."""

    tools: bool
    calls: bool
    several: bool
    text_arguments: bool
    null_content: bool
    system: bool


@dataclass(frozen=True)
class AnswerFormat:
    """How a model writes answers. ``reasoning``: the marks around it, None if there is none. ``special``: ids of the special tokens among
    all marks."""

    calls: CallFormat
    reasoning: ReasoningMarks | None
    template: Template
    special: Mapping[str, int]

    def shown(self, tools: Tools | None) -> tuple[str, ...]:
        """Special tokens that the text of an answer must have."""
        marks = (self.reasoning.begin, self.reasoning.end) if self.reasoning else ()
        return tuple(mark for mark in (*marks, *(self.calls.marks if tools else ())) if mark in self.special)

    def opens_reasoning(self, end_of_prompt: str) -> bool:
        """Whether a prompt with this end has begun the reasoning."""
        return self.reasoning is not None and end_of_prompt.rstrip().endswith(self.reasoning.begin)

    def parser(self, tools: Tools | None, opened: bool) -> AnswerParser | None:
        """For one answer; None if it is nothing but text. ``opened``: whether the prompt has begun the reasoning."""
        if tools is None and self.reasoning is None:
            return None
        names = [each.name for each in tools.callable] if tools else []
        most = 1 if tools and not tools.parallel else None
        return AnswerParser(partial(self._read, names=names, opened=opened), most)

    def _read(self, reader: Reader, names: Collection[str], opened: bool) -> Steps[None]:
        if self.reasoning is not None:
            yield from read_reasoning(reader, self.reasoning, opened)
        yield from self.calls.read(reader, names) if names else reader.until()


def choose(tokenizer: Tokenizer, calls: str | None = None, reasoning: str | None = None) -> AnswerFormat:
    """The format of the model with this tokenizer. ``calls``: a name in FORMATS, ``reasoning``: one in MARKS or NO_REASONING, instead of
    what is found."""
    history = _history(tokenizer, 1)
    written = history.text if history else ""
    form = FORMATS[calls] if calls else _family(written, tokenizer)
    if form is MISTRAL and "[TOOL_CALLS][" in written:
        form = replace(form, opening="[TOOL_CALLS][")
    marks = _reasoning(tokenizer) if reasoning is None else MARKS.get(reasoning)
    template = Template(
        tools=_PROBE.name in _rendered(tokenizer, [_USER], [_PROBE.described]),
        calls=history is not None,
        several=_history(tokenizer, 2) is not None,
        text_arguments=history is not None and history.text_arguments,
        null_content=history is not None and history.null_content,
        system=_RESULT in _rendered(tokenizer, [{"role": "system", "content": _RESULT}, _USER]),
    )
    texts = {text: token for token, text in tokenizer.hidden.items()}
    wanted = (*form.marks, *((marks.begin, marks.end) if marks else ()))
    return AnswerFormat(form, marks, template, {mark: texts[mark] for mark in wanted if mark in texts})


def _rendered(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, null_content: bool = False
) -> str:
    """The text; "" if the template refuses."""
    try:
        return tokenizer.render(messages, tools, null_content=null_content)
    except PromptError:
        return ""


@dataclass(frozen=True)
class _History:
    """A rendered conversation with calls and a result, and how the template had to be given the turn."""

    text: str
    text_arguments: bool
    null_content: bool


def _history(tokenizer: Tokenizer, calls: int) -> _History | None:
    """With a turn of ``calls``; None if the template does not show them and their result."""
    for null_content, arguments in product((False, True), ({"b": "value_d"}, '{"b": "value_d"}')):
        call = {"id": _ID, "type": "function", "function": {"name": _PROBE.name, "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": _ID, "name": _PROBE.name, "content": _RESULT}
        messages: list[Mapping[str, Any]] = [_USER, {"role": "assistant", "content": None, "tool_calls": [call] * calls}, result]
        for tools in ([_PROBE.described], None):  # with tools only their calls may count, and a template may know none
            text = _rendered(tokenizer, messages, tools, null_content)
            if _RESULT in text and "value_d" in text and text.count(_PROBE.name) >= calls + len(tools or ()):
                return _History(text, isinstance(arguments, str), null_content)
    return None


def _family(written: str, tokenizer: Tokenizer) -> CallFormat:
    """By what the template writes, else by the tokens that there are."""

    def has(mark: str) -> bool:
        return mark in written if written else tokenizer.token_id(mark) is not None

    if has("<｜tool▁calls▁begin｜>"):
        return DEEPSEEK if not written or "function<｜tool▁sep｜>" in written else DEEPSEEK_V31
    if has("[TOOL_CALLS]"):
        return MISTRAL_ARGS if f"[TOOL_CALLS]{_PROBE.name}" in written else MISTRAL
    if has("<|python_tag|>") or ('"parameters": {"b": "value_d"}' in written and "<tool_call>" not in written):
        return LLAMA
    return HERMES


def _reasoning(tokenizer: Tokenizer) -> ReasoningMarks | None:
    for marks in MARKS.values():
        tokens = all(tokenizer.token_id(mark) is not None for mark in (marks.begin, marks.end))
        if tokens or marks.end in tokenizer.template_source:
            return marks
    return None
