"""Whether chats are written as the model knows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from runtime.errors import PromptError
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
_ASKED = "Say something."


@dataclass(frozen=True)
class OtherTemplate:
    """``why``: what is wrong with the directory's template. ``source``: the one to compare it with."""

    why: str
    source: str


def other_template(tokenizer: Tokenizer, own: Mapping[str, str], special: Collection[str]) -> OtherTemplate | None:
    """None if there is nothing to say. ``own``: the templates of the checkpoint, by name. ``special``: texts that templates know by a
    name, such as bos_token; they mark no turns."""
    served = tokenizer.template_source
    if own.get("default") and own["default"].splitlines() != served.splitlines():  # a file may have other line ends
        return OtherTemplate("the chat template is not the checkpoint's own", own["default"])
    mark = next((mark for mark in FAMILIES if mark in tokenizer.hidden.values()), None)
    if mark is None:
        return None
    why = _fault(tokenizer, mark, special)
    return OtherTemplate(why, FAMILIES[mark]) if why else None


def _fault(tokenizer: Tokenizer, mark: str, special: Collection[str]) -> str | None:
    begins = f"{mark}, with which this model's turns begin"
    if not tokenizer.template_source:
        return f"there is no chat template, and the tokenizer has {begins}"
    try:
        turn = tokenizer.render([{"role": "user", "content": _ASKED}])
    except PromptError:
        return None
    if mark in tokenizer.template_source:
        return None if mark in turn.rpartition(_ASKED)[2] else f"the chat template does not open the answer with {mark}"
    # A model that was trained on from another may have kept its tokenizer, and mark turns with other tokens that were added to it.
    marks = {tokenizer.added[token] for token in tokenizer.encode_raw(turn) if token in tokenizer.added}
    return None if marks.difference(special) else f"the chat template never writes {begins}"
