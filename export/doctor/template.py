"""Whether chats are written as the model knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.text.tokenizer import Tokenizer

_TURN = "{{ '%s' + m['role'] + '%s' + m['content'] + '%s' }}"
_LOOP = "{%% for m in messages %%}%s{%% endfor %%}%s"
FAMILIES: Mapping[str, str] = {
    "<|im_start|>": _LOOP % (_TURN % ("<|im_start|>", "\\n", "<|im_end|>\\n"), "{{ '<|im_start|>assistant\\n' }}"),
    "<|start_header_id|>": "{{ bos_token }}"
    + _LOOP
    % (
        _TURN % ("<|start_header_id|>", "<|end_header_id|>\\n\\n", "<|eot_id|>"),
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
    ),
}
"""The special token that begins a turn, and the usual template of the models that have it."""


@dataclass(frozen=True)
class OtherTemplate:
    """``why``: what is wrong with the directory's template. ``source``: the one to compare it with."""

    why: str
    source: str


def other_template(tokenizer: Tokenizer, own: Mapping[str, str]) -> OtherTemplate | None:
    """None if there is nothing to say. ``own``: the templates of the checkpoint, by name."""
    served = tokenizer.template_source
    if own.get("default") and own["default"].splitlines() != served.splitlines():  # a file may have other line ends
        return OtherTemplate("the chat template is not the checkpoint's own", own["default"])
    hidden = set(tokenizer.hidden.values())
    for mark, source in FAMILIES.items():
        if mark in hidden and mark not in served:
            what = "the chat template never writes" if served else "there is no chat template, and the tokenizer has"
            return OtherTemplate(f"{what} {mark}, with which this model's turns begin", source)
    return None
