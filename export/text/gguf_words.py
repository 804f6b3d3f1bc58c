"""How llama.cpp divides text into words before byte-level merges: the regular expressions of its named pre-tokenizers, and their flags.

Source: llama-vocab.cpp, where every expression divides the pieces that the one before left. Names of other model families are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}|" + _REST
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|\p{{N}}%s|"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")


@dataclass(frozen=True)
class Words:
    """``expressions``: applied one after the other. ``whole``: whether a word that is in the vocabulary is a token without any merge.
    ``begins``: whether texts begin with BOS unless the header says otherwise."""

    expressions: tuple[str, ...]
    whole: bool = False
    begins: bool = False

    def pre_tokenizer(self) -> Any:
        """A pre-tokenizer of the tokenizers package."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

        splits = [Split(Regex(expression), behavior="isolated") for expression in self.expressions]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


_KINDS: dict[Words, str] = {
    Words((_CL100K % 3,), whole=True, begins=True): "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    Words((_CL100K % 3,)): "dbrx smaug-bpe",
    Words((_CL100K % 1,)): "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open",
    Words((r"\p{N}", _GPT2)): "smollm starcoder refact command-r codeshell exaone minerva-7b",
    Words((_GPT2,)): "gpt-2 phi-2 gigachat a.x-4.0 mellum mpt olmo jais exaone4 trillion",
    Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): "default",
    Words((_CASED % ("", "", "") + _SLASH,), whole=True, begins=True): "tekken",
    Words((_CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", "{1,3}") + _SLASH,)): "gpt-4o llama4 kanana2",
    Words(_DEEPSEEK3): "deepseek-v3 hunyuan-dense joyai-llm",
    Words(_DEEPSEEK_CODER): "deepseek-coder",
}
WORDS = {name: words for words, names in _KINDS.items() for name in names.split()}
"""By the name in tokenizer.ggml.pre."""
