"""The text side of a GGUF file, as llama.cpp reads it: byte-level BPE and SentencePiece (llama.cpp's SPM) vocabularies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError, UnsupportedModel
from .gguf_ends import CONTROL, UNKNOWN, USER_DEFINED, gguf_ends
from .gguf_words import WORDS, Words
from .pieces import merges_of
from .side import TextSide
from .templates import tried

_PREFIX = "tokenizer.ggml."
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding")  # GGUF's own spelling
_FILL = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle")
_ESSENTIAL = ("bos", "eos", "eot", "eom")
_SPM_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}


class Header(Protocol):
    """The metadata of a GGUF file."""

    @property
    def path(self) -> Path:
        """The file."""

    def field(self, key: str, default: Any = None) -> Any:
        """A metadata value, or ``default`` if the header lacks the key."""

    def keys(self) -> list[str]:
        """All keys."""


def text_of_gguf(header: Header) -> TextSide:
    """Raises UnsupportedModel for another kind of tokenizer, CheckpointError for a damaged header."""
    kind, split = header.field(_PREFIX + "model"), header.field(_PREFIX + "pre") or "default"
    if kind != "llama" and (kind != "gpt2" or split not in WORDS):
        raise UnsupportedModel(f"the GGUF's tokenizer {kind}/{split} is not supported — export from the Hugging Face directory instead")
    words = WORDS[split] if kind == "gpt2" else None
    tokens, warnings = _tokens(header), list[str]()
    types = _list(header, "token_type", int) if header.field(_PREFIX + "token_type") is not None else [1] * len(tokens)
    special = {name: _special_token(header, name, len(tokens), warnings) for name in (*_SPECIAL, *_FILL)}
    if words is None:
        special |= {name: token for name, token in _SPM_DEFAULTS.items() if special[name] is None and token < len(tokens)}
    ends = gguf_ends(tokens, [*types, *[1] * (len(tokens) - len(types))], special)
    try:
        tokenizer = _byte_level(header, tokens, words) if words else _sentencepiece(header, tokens, special["unknown"])
        _add(tokenizer, tokens, ends.types, words is None)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers package raises plain Exception
        raise CheckpointError(f"cannot read the tokenizer of {header.path}: {error} — the file is damaged, download it again") from None
    bos, eos = special["bos"], special["eos"]
    adds = {name: bool(header.field(f"{_PREFIX}add_{name}_token", default)) for name, default in _adds(words).items()}
    begins = adds["bos"] and bos is not None
    _surround(tokenizer, tokens, bos if begins else None, eos if adds["eos"] else None)
    texts = {f"{name}_token": tokens[token] for name, token in (("bos", bos), ("eos", eos)) if token is not None}
    usable, unusable = tried(_templates(header), {"bos_token": "", "eos_token": "", **texts})
    if words is not None and not header.field(_PREFIX + "pre"):
        warnings.append("the GGUF does not say how it divides words, so llama.cpp's default is used — convert it again")
    return TextSide(
        tokenizer_json=tokenizer.to_str(),
        stop=ends.stop,
        bos=bos,
        special={"bos_token": "", "eos_token": "", **texts},  # llama.cpp knows these two, and empty ones for those that are missing
        templates=usable,
        unusable=unusable,
        chat_bos=begins,
        warnings=tuple(warnings),
        names={token: tokens[token] for token in (*ends.stop, *([] if bos is None else [bos]))},
    )


def _adds(words: Words | None) -> dict[str, bool]:
    """Whether BOS and EOS surround a text if the header does not say."""
    return {"bos": words is None or words.begins, "eos": False}


def _list(header: Header, name: str, kind: type) -> list[Any]:
    values = header.field(_PREFIX + name)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        what = "strings" if kind is str else "numbers"
        raise CheckpointError(f"{header.path} has no {what} in {_PREFIX}{name} — the file is incomplete, download it again")
    return values


def _tokens(header: Header) -> list[str]:
    """The vocabulary. An empty token gets a name of its own, as in llama.cpp."""
    tokens = [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(_list(header, "tokens", str))]
    if len(set(tokens)) < len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise CheckpointError(f"{header.path} has the token {twice!r} twice — convert it again")
    return tokens


def _special_token(header: Header, name: str, vocab: int, warnings: list[str]) -> int | None:
    """The id of a special token, None if the model has none. -1 counts as none, with a warning."""
    token_id = header.field(f"{_PREFIX}{name}_token_id")
    if token_id in (-1, 0xFFFFFFFF) and name in _ESSENTIAL:
        warnings.append(f"the GGUF has {token_id} for its {name} token, which is ignored")
        return None
    fits = type(token_id) is int and 0 <= token_id < vocab
    if not fits and name not in _ESSENTIAL:  # as llama.cpp, which only warns
        return None
    if not fits and token_id is not None:
        raise CheckpointError(f"{header.path} has {token_id!r} for its {name} token — the file is damaged, download it again")
    return None if token_id is None else int(token_id)


def _byte_level(header: Header, tokens: list[str], words: Words) -> Any:
    from tokenizers import Tokenizer, decoders, models

    pairs = [_pair(merge) for merge in _list(header, "merges", str)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=words.whole))
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    at = merge.find(" ", 1)
    if at < 0:
        raise ValueError(f"{merge!r} is not a merge")
    return merge[:at], merge[at + 1 :]


def _sentencepiece(header: Header, tokens: list[str], unknown: int | None) -> Any:
    """Pieces with scores: the best-scored pair of neighbours is merged first, and characters without a piece become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = merges_of(tokens, _list(header, "scores", float))
    unk = {} if unknown is None else {"unk_token": tokens[unknown]}
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, **unk))
    space = bool(header.field(_PREFIX + "add_space_prefix", True))
    steps = [normalizers.Prepend("▁")] if space else []  # at the beginning, and behind every special token
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if space else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _add(tokenizer: Any, tokens: list[str], types: Mapping[int, int], pieces: bool) -> None:
    """Add the tokens that are found in a text before it is divided: special ones, which the output omits, and the user's own."""
    from tokenizers import AddedToken

    special = [tokens[token] for token, kind in types.items() if kind in (CONTROL, UNKNOWN)]
    own = [tokens[token] for token, kind in types.items() if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    # SentencePiece writes spaces of its own pieces as ▁; a text has spaces there.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in own if not (pieces and "▁" in token)])


def _surround(tokenizer: Any, tokens: list[str], bos: int | None, eos: int | None) -> None:
    """Let the tokenizer put these tokens around every text."""
    from tokenizers.processors import TemplateProcessing

    around = [(tokens[token], token) for token in (bos, eos) if token is not None]
    if around:
        form = [*([] if bos is None else [tokens[bos]]), "$A", *([] if eos is None else [tokens[eos]])]
        tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=around)


def _templates(header: Header) -> dict[str, str]:
    """The default template, and those with a name."""
    prefix = "tokenizer.chat_template"
    names = [key.removeprefix(prefix + ".") for key in header.keys() if key.startswith(prefix + ".")]  # noqa: SIM118 - not a dict
    stored = {"default": header.field(prefix), **{name: header.field(f"{prefix}.{name}") for name in names}}
    return {name: template for name, template in stored.items() if isinstance(template, str) and template}
