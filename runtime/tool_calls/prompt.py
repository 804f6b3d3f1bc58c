"""Conversations with tools in the form that a model's chat template takes, or as text where it knows none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..text.tokenizer import Chat, Message
from .choose import AnswerFormat
from .functions import Function, Tools


def chat(form: AnswerFormat, messages: Sequence[Message], tools: Tools | None, values: Mapping[str, Any]) -> Chat:
    """The prompt. Calls in ``messages`` are as in OpenAI's API, but have their arguments as objects. ``values``: further variables of the
    template.

    A template without tools gets their description in the system turn, calls as the text of their turns, and results as turns of the user.
    One that takes one call a turn gets several turns.
    """
    functions, knows = tools.functions if tools else (), form.template
    turns: Sequence[Message] = messages if knows.several or not knows.calls else _one_by_one(messages)
    if knows.text_arguments:
        turns = [_with_text_arguments(each) for each in turns]
    if not knows.calls:
        turns = _as_text(form, turns)
    if functions and not knows.tools:
        turns, functions = _with_description(turns, described(form, functions), knows.system), ()
    return Chat(turns, [each.described for each in functions] or None, values, knows.null_content)


def described(form: AnswerFormat, functions: Sequence[Function]) -> str:
    """Text that tells a model which functions there are and how to call them."""
    schemas = "\n".join(json.dumps(each.described["function"], ensure_ascii=False) for each in functions)
    example = form.calls.written([("NAME", {"PARAMETER": "VALUE"})])
    return (
        "You can call functions. Each line describes one, with a JSON schema of its parameters:\n"
        f"{schemas}\nTo call a function, answer in exactly this form:\n{example}\nIf you need no function, answer in words."
    )


def _with_text_arguments(message: Message) -> dict[str, Any]:
    def call(each: Mapping[str, Any]) -> dict[str, Any]:
        function = each["function"]
        return {**each, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

    return {**message, **({"tool_calls": [call(each) for each in message["tool_calls"]]} if message.get("tool_calls") else {})}


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    turns: list[Message] = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        if message["role"] == "tool":
            asked = [
                at for at, turn in enumerate(turns) if any(each["id"] == message["tool_call_id"] for each in turn.get("tool_calls") or ())
            ]
            turns.insert(asked[-1] + 1 if asked else len(turns), message)
        elif len(calls) > 1:
            turns += [{**message, "content": None if at else message.get("content"), "tool_calls": [call]} for at, call in enumerate(calls)]
        else:
            turns.append(message)
    return turns


def _as_text(form: AnswerFormat, messages: Sequence[Message]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if turns and turns[-1].get("results"):  # templates may want users and assistants to take turns
                turns[-1]["content"] += f"\n{text}"
            else:
                turns.append({"role": "user", "content": text, "results": True})
        elif message.get("tool_calls"):
            calls = [(each["function"]["name"], each["function"]["arguments"]) for each in message["tool_calls"]]
            said = message.get("content") or ""
            others = {key: value for key, value in message.items() if key != "tool_calls"}
            turns.append({**others, "content": said + "\n" * bool(said) + form.calls.written(calls)})
        else:
            turns.append(dict(message))
    return [{key: value for key, value in turn.items() if key != "results"} for turn in turns]


def _with_description(turns: Sequence[Message], text: str, system: bool) -> list[Message]:
    """The turns with ``text`` in the system turn; in the first one if the template has none."""
    role = "system" if system else turns[0]["role"]
    if turns[0]["role"] != role:
        return [{"role": role, "content": text}, *turns]
    said = turns[0].get("content") or ""
    return [{**turns[0], "content": f"{said}\n\n{text}" if system else f"{text}\n\n{said}"}, *turns[1:]]
