"""Tokenizers with the marks of the families that call functions, and chat templates in the manner of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.manifest.schema import Tokens
from runtime.text.tokenizer import Tokenizer
from tests.support.chat_templates import CHATML, DEEPSEEK, QWEN
from tests.support.tiny_tokenizers import byte_level

END = "<end>"
_TURNS = """{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls %}{{ '<' + m.role + '>' }}
        {%- for call in m.tool_calls %}CALLS{%- endfor %}{{ '</>' }}
    {%- elif m.role == 'tool' %}{{ '<result>' + m.content + '</>' }}
    {%- else %}{{ '<' + m.role + '>' + m.content + '</>' }}{%- endif %}
{%- endfor %}{{ '<assistant>' if add_generation_prompt }}"""
_TOOLS = "{%- if tools %}{{ '<tools>' }}{%- for tool in tools %}{{ tool.function | tojson }}{%- endfor %}{{ '</>' }}{%- endif %}"
LLAMA = _TOOLS + _TURNS.replace(
    "CALLS",
    "{%- if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    '{{ \'{"name": "\' + call.function.name + \'", "parameters": \' + call.function.arguments | tojson + "}" }}',
)
MISTRAL = _TOOLS + _TURNS.replace(
    "CALLS",
    "{%- if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{ '[TOOL_CALLS] [' if loop.first else ', ' }}{{ call.function | tojson }}{{ ']' if loop.last }}",
)
MISTRAL_ARGS = _TOOLS + _TURNS.replace("CALLS", "{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}")
R1 = DEEPSEEK.replace(
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}",
    "{%- if message['role'] == 'assistant' and message['tool_calls'] %}{%- for tool in message['tool_calls'] %}"
    "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n'"
    " + tool['function']['arguments'] + '\\n```<｜tool▁call▁end｜>'}}{%- endfor %}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{{'<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}",
)
_THINK = ("<think>", "</think>")
_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
)  # fmt: skip
MODELS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "plain": (CHATML, (), ()),
    "qwen": (QWEN, (), ("<tool_call>", "</tool_call>", *_THINK)),
    "llama": (LLAMA, ("<|python_tag|>",), ()),
    "mistral": (MISTRAL, ("[TOOL_CALLS]",), ()),
    "mistral-args": (MISTRAL_ARGS, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"), ()),
    "deepseek": (R1, (), (*_DEEPSEEK, *_THINK)),
    "deepseek, special": (R1, (*_DEEPSEEK, *_THINK), ()),
}
"""By name: the template, marks that are special tokens, and marks that are ordinary tokens."""


def tokens_of(name: str, directory: Path) -> Tokens:
    """Writes a tokenizer and a template to ``directory``. The last special token ends an answer."""
    template, special, ordinary = MODELS[name]
    tokenizer: dict[str, Any] = byte_level(END, *special, *ordinary, size=400)
    for entry in tokenizer["added_tokens"]:
        entry["special"] = entry["content"] not in ordinary
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "template.jinja").write_text(template)
    return Tokens("tokenizer.json", {"default": "template.jinja"}, (0,), None, {"bos_token": "<s>", "eos_token": END})


def tool_model(name: str, directory: Path) -> Tokenizer:
    """The tokenizer of one of MODELS."""
    return Tokenizer(directory, tokens_of(name, directory))
