"""The special tokens of a GGUF by id and by name, and which of them end an answer, as llama.cpp decides (llama-vocab.cpp)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

CONTROL, USER_DEFINED, UNKNOWN = 3, 4, 2  # GGUF's token types

_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>"),
    *("<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
    *("<｜end▁of▁sentence｜>", "[e~["),
)
_FILL = {  # tokens around a gap that the model fills; these three end an answer
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_FILL_ONLY = (  # made special by their names as well, but they end nothing
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"),
)
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # part of the text, whatever their type


@dataclass(frozen=True)
class GgufEnds:
    """``stop``: ids that end an answer, each with the places that name it. ``types``: every token's type after llama.cpp's corrections."""

    stop: Mapping[int, tuple[str, ...]]
    types: Mapping[int, int]


def gguf_ends(tokens: list[str], types: list[int], special: Mapping[str, int | None]) -> GgufEnds:
    """``types``: as stored, one for each of ``tokens``. ``special``: the header's ids by the names bos, eos, eot, eom, fim_pad, ..."""
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    found: dict[int, list[str]] = {}
    corrected = dict(enumerate(types))
    for name in ("eos", "eot", "eom", *_FILL):
        token_id = special.get(name)
        if token_id is not None:
            found.setdefault(token_id, []).append(f"tokenizer.ggml.{name}_token_id")
        elif first := next((ids[token] for token in _FILL.get(name, ()) if token in ids), None):
            found.setdefault(first, []).append("its name")
            corrected[first] = CONTROL
    for token in _ENDS:
        if token in ids:
            found.setdefault(ids[token], []).append("its name")
            corrected[ids[token]] = CONTROL
    for token in _FILL_ONLY:
        if token in ids and not any(special.get(name) is not None for name in _names_of(token)):
            corrected[ids[token]] = CONTROL
    for token in _SHOWN:
        if token in ids:
            corrected[ids[token]] = USER_DEFINED
    for token, type_ in _not_ends({tokens[token_id] for token_id in found}):
        del found[ids[token]]
        corrected[ids[token]] = type_
    return GgufEnds({token_id: tuple(dict.fromkeys(places)) for token_id, places in sorted(found.items())}, corrected)


def _names_of(token: str) -> tuple[str, str]:
    """The header's names, new and old, for a token of _FILL_ONLY."""
    kind = _FILL_ONLY.index(token) // (len(_FILL_ONLY) // 3)
    return (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))[kind]


def _not_ends(ends: set[str]) -> Iterator[tuple[str, int]]:
    """Tokens that end no answer because of others beside them, with the type they get (o200k_harmony, Solar Open, Gemma 4)."""
    call = bool(ends & {"<|call|>", "<|calls|>"})
    if call and "<|end|>" in ends and ends & {"<|return|>", "<|flush|>"}:
        yield "<|end|>", USER_DEFINED
    if "<|tool_response>" in ends and "</s>" in ends:
        yield "</s>", 1
