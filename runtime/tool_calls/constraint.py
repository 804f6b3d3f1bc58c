"""The grammar of an answer with reasoning, calls and a form, in llguidance's notation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..constraints.grammars import WHITE_SPACE
from ..sampling_params import Constraint
from .call_format import NAME
from .choose import AnswerFormat
from .functions import Function, Tools

_ANY = r"TEXT: /(.|\n)*/"
_JSON_PARTS = re.compile(r'"[^"]*"|.', re.DOTALL)
_SPACE = r"SPACE: /[ \t\r\n]{0,8}/"  # as many as models write between reasoning and answer


def answer_constraint(form: AnswerFormat, tools: Tools | None, wanted: Constraint | None, opened: bool) -> Constraint | None:
    """What an answer must be: None if anything.

    ``wanted``: the form that the request asks for; it holds for what is said after the reasoning, if the model calls no function.
    ``opened``: whether the prompt has begun the reasoning. Arguments follow a function's schema if a call is required or the function is
    strict; else they are any object.
    """
    rules = _call_rules(form, tools, wanted)
    if rules is None:
        if wanted is None or form.reasoning is None:
            return wanted
        rules = ["said: @form"]
    if form.reasoning is None:
        return Constraint.answer("\n".join(["start: said", *rules, _ANY]), wanted)
    return Constraint.answer("\n".join([*_reasoning_rules(form, opened), *rules, _ANY, _SPACE]), wanted)


def _reasoning_rules(form: AnswerFormat, opened: bool) -> list[str]:
    assert form.reasoning is not None
    begin, end = form.reasoning.begin, form.reasoning.end
    marked = f"TEXT {_literal(form, end)}" if end in form.special else rf"/(.|\n)*{_in_regex(end)}/"
    lazy = "" if end in form.special else "[lazy]"
    thought = f"thought{lazy}: {marked}"
    if opened:
        return ["start: thought SPACE said", thought]
    # Lazy: what is said may be any text, and without it the mark would be the beginning of that.
    opening = f"opening: {_literal(form, begin)}" if begin in form.special else f"opening[lazy]: /{_in_regex(begin)}/"
    return ["start: (opening thought SPACE)? said", opening, thought]


def _call_rules(form: AnswerFormat, tools: Tools | None, wanted: Constraint | None) -> list[str] | None:
    """The rule ``said`` for answers with calls, and those that it uses; None if calls need no rules."""
    if tools is None:
        return None
    must = tools.required or tools.named is not None
    if not must and wanted is None and not any(each.strict for each in tools.functions):
        return None
    functions, calls, trigger = tools.callable, form.calls, form.calls.trigger
    arguments = [each.schema if must or each.strict else {"type": "object"} for each in functions]
    rules = [f"arguments_{at}: %json {_json(schema)}" for at, schema in enumerate(arguments)]
    after = "(next_call)*" if tools.parallel else ""
    closing = _literal(form, calls.closing)
    free = not must and wanted is None  # the model may say what it likes, up to the trigger
    begins = calls.opening + calls.head
    if free and trigger is not None:
        if trigger in form.special:
            rules.append("said: TEXT (calls)?")
        else:
            begins = begins.removeprefix(trigger)
            rules.append("said: TEXT | before calls")
            rules.append(rf"before[lazy]: /(.|\n)*{_in_regex(trigger)}/")
    elif free:
        rules.append("said: calls | WORDS")
        rules.append(r"WORDS: /([^{ \t\r\n](.|\n)*)?/")
    else:
        rules.append("said: calls" if must else "said: @form | calls")
    rules.append(f"calls: first_call {after} {closing}")
    rules += _alternatives(form, "first_call", begins, functions)
    rules += _alternatives(form, "next_call", calls.between + calls.head, functions) if tools.parallel else []
    return rules


def _alternatives(form: AnswerFormat, rule: str, head: str, functions: Sequence[Function]) -> list[str]:
    calls = [
        f"{_literal(form, head.replace(NAME, each.name))} arguments_{at} {_literal(form, form.calls.tail)}"
        for at, each in enumerate(functions)
    ]
    return [f"{rule}: {' | '.join(calls)}"]


def _json(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITE_SPACE}})


def _literal(form: AnswerFormat, text: str) -> str:
    """``text`` in a grammar. Special tokens are written by their ids."""
    pieces = re.split("(" + "|".join(map(re.escape, form.special)) + ")", text) if form.special else [text]
    if form.calls.trigger is None:  # a JSON object may be a call or the form: both must be divided alike
        pieces = [part for piece in pieces for part in ([piece] if piece in form.special else _JSON_PARTS.findall(piece))]
    return " ".join(
        f"<[{form.special[each]}]>" if each in form.special else json.dumps(each, ensure_ascii=False) for each in pieces if each
    )


def _in_regex(text: str) -> str:
    """``text`` in a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/")
