"""A random BERT of two layers with a word-piece tokenizer of its own, as the text state's encoder is one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

WORDS = ("the", "cat", "sat", "on", "mat", "a", "dog", "log", "##s", "##t", "quick", "brown", "fox")
POSITIONS = 48
WIDTH = 32


def write_bert(directory: Path, seed: int = 0, **changes: object) -> BertModel:
    """config.json, model.safetensors and a tokenizer.json that truncates and pads, as the published one does."""
    torch.manual_seed(seed)
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *WORDS,
        *(chr(code) for code in range(33, 127)),
        *(f"##{chr(code)}" for code in range(33, 127)),
    ]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=56,
        max_position_embeddings=POSITIONS,
        layer_norm_eps=1e-12,
        attn_implementation="eager",
    )
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, which begin as zeros and ones
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    _write_tokenizer(directory, vocab)
    if changes:
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return model


def _write_tokenizer(directory: Path, vocab: dict[str, int]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(directory / "tokenizer.json"))


def embedded(model: BertModel, tokens: list[int]) -> torch.Tensor:
    """Mean over the word pieces, of length 1, as transformers computes it."""
    with torch.no_grad():
        mean = model(torch.tensor([tokens])).last_hidden_state[0].mean(0)
    return mean / mean.norm()
