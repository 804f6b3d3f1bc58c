"""The bytes that single tokens add to a text. A character may need several tokens, so one token alone need not be valid text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's name of a fallback byte


class TokenBytes:
    """Maps token ids to the bytes that the tokenizer's own decoder gives them, for byte-level, SentencePiece and word tokenizers."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: a `tokenizers.Tokenizer`."""
        self._tokenizer, self._decoder = tokenizer, tokenizer.decoder
        self._special = {each.content for each in tokenizer.get_added_tokens_decoder().values() if each.special}
        steps = set() if self._decoder is None else _steps(json.loads(self._decoder.__getstate__()))
        self._alphabet = _byte_level() if "ByteLevel" in steps else None
        self.has_fallback = "ByteFallback" in steps
        """Whether the decoder makes characters of tokens that stand for single bytes."""
        self.has_suffix = "BPEDecoder" in steps
        """Whether the decoder writes a space behind a word for its suffix, except for the last token of a text."""

    def __call__(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        """The bytes of one token; b"" for an id without a token. ``first``: whether it begins the text, where SentencePiece decoders omit
        one space. ``special``: whether special tokens return their names; otherwise they add nothing."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if piece in self._special:
            return piece.encode() if special else b""
        if self._alphabet is not None:
            values = [self._alphabet.get(character) for character in piece]
            return piece.encode() if None in values else bytes(value for value in values if value is not None)
        byte = _BYTE.fullmatch(piece) if self.has_fallback else None
        if byte and (value := int(byte[1], 16)) >= 0x80:  # lower bytes are ASCII, which the decoder handles
            return bytes([value])
        return self._decode(piece, first).encode()

    def join(self, tokens: Sequence[int]) -> bytes:
        """The bytes of ``tokens`` as one text. The first token that adds any begins it."""
        joined, begun = [], False
        for token in tokens:
            joined.append(self(token, first=not begun))
            begun = begun or bool(self(token))  # a space that begins the text adds nothing, but it is the first token
        return b"".join(joined)

    def _decode(self, piece: str, first: bool) -> str:
        """The text of a piece at the beginning of a text or after another piece."""
        decoder = self._decoder
        if decoder is None:  # tokens are words, which are joined with spaces
            return piece if first else f" {piece}"
        if self.has_suffix:
            return str(decoder.decode([piece, "a"]))[:-1]
        return str(decoder.decode([piece])) if first else str(decoder.decode(["a", piece]))[1:]


def _steps(decoder: Any) -> set[str]:
    """The types of all steps of a decoder, from its entry in tokenizer.json."""
    return {decoder["type"]}.union(*map(_steps, decoder.get("decoders", ())))


def _byte_level() -> dict[str, int]:
    """GPT-2's byte-level alphabet, character -> byte: printable bytes stand for themselves, the others are characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(0x100) if byte not in printable)
    return characters | {chr(0x100 + index): byte for index, byte in enumerate(others)}
