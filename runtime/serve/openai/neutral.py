"""Parameters that are accepted although nothing here implements them: values that ask for nothing, and parameters that change no answer.

Clients send them without being asked to: agents return messages as they got them, and frameworks write out every default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CACHING = frozenset({"cache_control", "prompt_cache_breakpoint"})

_STORING = frozenset(
    {"metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
)

HARMLESS: Mapping[str, frozenset[str]] = {
    "body": _STORING | {"parallel_tool_calls", "prediction"},
    "response": _STORING | {"max_tool_calls"},  # of tools that a server runs
    "text": frozenset(),
    "response_tool": frozenset(),
    "stream_options": frozenset({"include_obfuscation"}),
    "message": _CACHING | {"parsed"},  # which OpenAI's client adds to messages that it parsed
    "part": _CACHING,
    "tool": _CACHING,
    "function": frozenset(),
    "call": frozenset({"index"}),
    "called_function": frozenset({"parsed_arguments"}),
}
"""By kind of object: names whose value is not looked at."""

NEUTRAL: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "body": {
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
        "tools": ([],),
        "tool_choice": ("none", "auto"),  # there are no tools to choose from
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
        "moderation": (),
        "top_logprobs": (0,),
        "skip_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "use_beam_search": (False,),
        "length_penalty": (1,),
        "chat_template_kwargs": ({},),  # of /v1/completions, as tools
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
    },
    "stream_options": {"continuous_usage_stats": (False,)},
    "message": {
        "function_call": (),
        "annotations": ([],),
        "audio": (),
        "refusal": ("",),
        "reasoning_details": ([],),
        "provider_specific_fields": ({},),
    },
    "part": {"annotations": ([],), "citations": ([],)},
    "response": {
        "background": (False,),
        "include": ([], ["reasoning.encrypted_content"]),  # there is none to include
        "truncation": ("disabled",),
        "reasoning": ({}, {"effort": "none"}, {"summary": "auto"}, {"effort": "none", "summary": "auto"}),
        "prompt": (),
        "top_logprobs": (0,),
        "moderation": (),
    },
    "text": {"verbosity": ("medium",)},
    "response_tool": {"defer_loading": (False,)},
    "tool": {},
    "function": {},
    "call": {},
    "called_function": {},
}
"""By kind of object: names and the values that ask for nothing. Null always does."""


def is_neutral(kind: str, name: str, value: Any) -> bool:
    """Whether the field ``name`` of a ``kind`` of object may be ignored."""
    if isinstance(value, Mapping):
        value = {key: each for key, each in value.items() if each is not None}
    return value is None or name in HARMLESS[kind] or any(_same(value, each) for each in NEUTRAL[kind].get(name, ()))


def _same(value: Any, other: Any) -> bool:
    """Equality that tells True from 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
