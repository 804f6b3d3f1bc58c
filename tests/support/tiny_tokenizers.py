"""Small tokenizers of every kind, as the content of tokenizer.json. Each call returns a copy of its own."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

CORPUS = (
    "the cat sat on the mat and the dog sat on the log",
    "user assistant system: Say something. You are a helpful bot, aren't you?",
    "il était une fois, naïve façade; 12 + 34 = 46, 2026 and 1,000",
    "def f(x):\n    return x + 1\n\n\tprint('hi')",
)
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def _byte_level(size: int, marks: tuple[str, ...], split: bool) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=split))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    words = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), byte_level])
    tokenizer.pre_tokenizer = words if split else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(marks), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def byte_level(*marks: str, size: int = 320, split: bool = False) -> dict[str, Any]:
    """Byte-level BPE. ``marks``: its special tokens, which have the first ids. ``split``: divided as Llama 3 divides, else as GPT-2."""
    return dict(json.loads(_byte_level(size, marks, split)))


@cache
def _pieces() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges of a SentencePiece BPE: three special tokens, 256 bytes, pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces), tuple(map(tuple, model["merges"]))


def special(*texts: str, first: int = 0, **flags: Any) -> list[dict[str, Any]]:
    """Entries of tokenizer.json's added_tokens, with ids from ``first`` on."""
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}
    return [{"id": first + index, "content": text, **base} for index, text in enumerate(texts)]


def begin(token: str, token_id: int, end: tuple[str, int] | None = None) -> dict[str, Any]:
    """A post-processor that puts ``token`` before a text, and ``end`` behind it."""
    around = [(token, token_id), *([end] if end else [])]
    tail = [{"SpecialToken": {"id": end[0], "type_id": 0}}] if end else []
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, *tail]
    texts = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in around}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": texts}


def sentencepiece(kind: str = "llama2") -> dict[str, Any]:
    """BPE with byte fallback. ``kind``: llama2 (a normalizer writes spaces), mistral (a pre-tokenizer does), gemma (no space in front).
    Id 0 is <unk>, 1 <s>, 2 </s>."""
    vocab, merges = _pieces()
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = [] if kind == "gemma" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special("<unk>", "<s>", "</s>"),
        "normalizer": {
            "llama2": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
            "mistral": None,
            "gemma": replace,
        }[kind],
        "pre_tokenizer": metaspace if kind == "mistral" else None,
        "post_processor": begin("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [*steps, *strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(vocab)},
            "merges": [list(pair) for pair in merges],
        },
    }


def pieces_with_scores() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of the same vocabulary, as a GGUF stores them."""
    vocab, merges = _pieces()
    rank = {"".join(pair): index for index, pair in reversed(list(enumerate(merges)))}
    scores = [-float(rank.get(piece, len(merges) + index)) for index, piece in enumerate(vocab)]
    return list(vocab), scores, [2, 3, 3, *[6] * 256, *[1] * (len(vocab) - 259)]


def unigram(fallback: bool = False) -> dict[str, Any]:
    """Unigram pieces behind a Metaspace pre-tokenizer. ``fallback``: with a token for every byte."""
    vocab, _ = _pieces()
    chosen = [piece for index, piece in enumerate(vocab) if fallback or not 3 <= index < 259]
    scores = [0.0 if index < 3 else -1.0 - 6.0 / len(piece) - index / 1000 for index, piece in enumerate(chosen)]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    scored = [list(each) for each in zip(chosen, scores, strict=True)]
    return {
        **sentencepiece("mistral"),
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]} if fallback else metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": fallback, "vocab": scored},
    }


def word_piece() -> dict[str, Any]:
    """BERT's pieces, without the clean-up of spaces."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,?!'=+:;()"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), "the", "cat", "##at", "some", "##thing"]
    return {
        **sentencepiece("mistral"),
        "added_tokens": special("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": begin("[CLS]", 2, ("[SEP]", 3)),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: index for index, piece in enumerate(vocab)},
        },
    }


def word_level() -> dict[str, Any]:
    """Whole words, which the decoder joins with spaces."""
    vocab = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "hi", "Say", "something", "."]
    return {
        **sentencepiece("mistral"),
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {piece: index for index, piece in enumerate(vocab)}, "unk_token": "<unk>"},
    }
