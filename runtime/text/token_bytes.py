"""What single tokens add to a text, in bytes: a character may need several tokens, so that a token alone need not be text."""

from __future__ import annotations

import json
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's name of a byte that no piece covers


class TokenBytes:
    """Bytes of tokens as the tokenizer's own decoder joins them, whichever family it is of."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: a `tokenizers.Tokenizer`."""
        self._tokenizer, self._decoder = tokenizer, tokenizer.decoder
        self._special = {each.content for each in tokenizer.get_added_tokens_decoder().values() if each.special}
        steps = set() if self._decoder is None else _steps(json.loads(self._decoder.__getstate__()))
        self._alphabet = _byte_level() if "ByteLevel" in steps else None
        self._has_bytes = "ByteFallback" in steps

    def __call__(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        """``first``: at the very beginning of a text, where SentencePiece's decoders leave one space out. ``special``: the names of special
        tokens, which add nothing to a text otherwise. Ids that no token has give b""."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if piece in self._special:
            return piece.encode() if special else b""
        if self._alphabet is not None:
            known = [self._alphabet.get(each) for each in piece]
            return piece.encode() if None in known else bytes(each for each in known if each is not None)
        byte = _BYTE.fullmatch(piece) if self._has_bytes else None
        if byte and (value := int(byte[1], 16)) >= 0x80:  # the others are text by themselves
            return bytes([value])
        return self._joined(piece, first).encode()

    def _joined(self, piece: str, first: bool) -> str:
        """The text of a piece, alone or after another one."""
        decoder = self._decoder
        if decoder is None:  # tokens are words, with spaces between them
            return piece if first else f" {piece}"
        return str(decoder.decode([piece])) if first else str(decoder.decode(["a", piece]))[1:]


def _steps(decoder: Any) -> set[str]:
    """Names of everything that a decoder consists of, as tokenizer.json writes it."""
    return {decoder["type"]}.union(*map(_steps, decoder.get("decoders", ())))


def _byte_level() -> dict[str, int]:
    """GPT-2's letter of every byte: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in seen}
    hidden = (byte for byte in range(0x100) if byte not in seen)
    return letters | {chr(0x100 + at): byte for at, byte in enumerate(hidden)}
