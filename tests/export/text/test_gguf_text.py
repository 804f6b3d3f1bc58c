"""The text side of a GGUF: its vocabulary, which tokens end an answer, and its chat templates, as llama.cpp reads them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from export.text.gguf_text import text_of_gguf
from export.text.side import TextSide
from runtime.text.tokenizer import Tokenizer
from tests.support.chat_templates import CHATML, LLAMA2
from tests.support.checkpoints import refused
from tests.support.tiny_tokenizers import byte_level, pieces_with_scores

ASK = [{"role": "user", "content": "the cat"}]


class Header:
    """The metadata of a GGUF. Names without a dot are the tokenizer's."""

    path = Path("model.gguf")

    def __init__(self, **fields: Any) -> None:
        self._fields = {name if name.startswith("tokenizer.") else f"tokenizer.ggml.{name}": value for name, value in fields.items()}

    def field(self, key: str, default: Any = None) -> Any:
        return self._fields.get(key, default)

    def keys(self) -> list[str]:
        return list(self._fields)


def header(*tokens: str, types: dict[str, int] | None = None, **fields: Any) -> Header:
    """A byte-level vocabulary with more ``tokens`` at its end, control tokens unless ``types`` has another type."""
    stored = byte_level()["model"]
    vocab = [*sorted(stored["vocab"], key=stored["vocab"].__getitem__), *tokens]
    kinds = [1] * (len(vocab) - len(tokens)) + [(types or {}).get(token, 3) for token in tokens]
    merges = [" ".join(merge) for merge in stored["merges"]]
    fields = {name: vocab.index(value) if isinstance(value, str) and name.endswith("_id") else value for name, value in fields.items()}
    return Header(**{"model": "gpt2", "pre": "gpt-2", "tokens": vocab, "token_type": kinds, "merges": merges, **fields})


def opened(side: TextSide, directory: Path) -> Tokenizer:
    return Tokenizer(directory, side.write(directory))


@pytest.mark.parametrize(
    ("tokens", "fields", "ends"),
    [
        (("<|im_start|>", "<|im_end|>"), {}, {"<|im_end|>"}),
        (("<e>", "<t>", "<m>"), {"eos_token_id": "<e>", "eot_token_id": "<t>", "eom_token_id": "<m>"}, {"<e>", "<t>", "<m>"}),
        (("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<x>"), {"eos_token_id": "<|eot_id|>"},
         {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}),
        (("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"), {}, {"<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}),
        (("<p>", "<|fim_pad|>"), {"fim_pad_token_id": "<p>"}, {"<p>"}),
        (("<|return|>", "<|call|>", "<|end|>"), {}, {"<|return|>", "<|call|>"}),
        (("<|return|>", "<|end|>"), {}, {"<|return|>", "<|end|>"}),
        (("<|tool_response>", "</s>", "<eos>"), {}, {"<|tool_response>", "<eos>"}),
        (("<｜end▁of▁sentence｜>", "[EOS]", "<end_of_turn>", "<turn|>", "[e~["), {},
         {"<｜end▁of▁sentence｜>", "[EOS]", "<end_of_turn>", "<turn|>", "[e~["}),
        (("<a>",), {"padding_token_id": 99999}, set()),
    ],
)  # fmt: skip
def test_ends_by_id_and_by_name(tokens: tuple[str, ...], fields: dict[str, Any], ends: set[str]) -> None:
    side = text_of_gguf(header(*tokens, **fields))
    assert {side.names[token] for token in side.stop} == ends
    assert bool(ends) != any("no file says which token ends" in warning for warning in side.all_warnings)


def test_a_token_with_the_name_of_an_end_is_a_control_token(tmp_path: Path) -> None:
    side = text_of_gguf(header("<|im_end|>", "<|start|>", "<think>", types={"<|im_end|>": 1, "<think>": 4}))
    tokenizer = opened(side, tmp_path)
    ids = tokenizer.encode("the<|start|><think>cat<|im_end|>")
    assert ids[-1] in side.stop
    assert tokenizer.decode(ids) == "the<|start|><think>cat"  # the first one is always shown


def test_templates_with_and_without_a_name(tmp_path: Path) -> None:
    named = {"": CHATML, ".tool_use": "{{ tools | length }} tools", ".x": "{%"}
    side = text_of_gguf(header("<|im_start|>", "<|im_end|>", **{f"tokenizer.chat_template{name}": text for name, text in named.items()}))
    assert (set(side.templates), set(side.unusable)) == ({"default", "tool_use"}, {"x"})
    tokenizer = opened(side, tmp_path)
    assert tokenizer.render(ASK) == "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render(ASK, tools=[{}, {}]) == "2 tools"


@pytest.mark.parametrize("template", [CHATML, LLAMA2])
def test_chats_begin_with_one_bos(tmp_path: Path, template: str) -> None:
    """llama.cpp puts it before every prompt, unless the template has written it."""
    fields = {"bos_token_id": "<bos>", "eos_token_id": "<eos>", "tokenizer.chat_template": template}
    begins = text_of_gguf(header("<bos>", "<eos>", **fields, add_bos_token=True))
    (tmp_path / "other").mkdir()
    ids, bos = opened(begins, tmp_path).encode(ASK), begins.bos
    assert (ids[0], ids.count(bos)) == (bos, 1)
    plain = opened(text_of_gguf(header("<bos>", "<eos>", **fields)), tmp_path / "other").encode(ASK)
    assert plain == (ids if template == LLAMA2 else ids[1:])


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("smollm", False)])
def test_bos_of_plain_text_by_the_pre_tokenizers_name(tmp_path: Path, pre: str, begins: bool) -> None:
    tokenizer = opened(text_of_gguf(header("<bos>", pre=pre, bos_token_id="<bos>")), tmp_path)
    assert (tokenizer.hidden.get(tokenizer.encode("the")[0]) == "<bos>") == begins


def spm(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """llama.cpp's SPM by its definition: merge the neighbours whose piece has the best score, the leftmost of equals."""
    ids = {token: index for index, token in enumerate(tokens)}
    symbols = [*text.replace(" ", "▁")]
    while True:
        pairs = [(-scores[ids[a + b]], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
        if not pairs:
            break
        at = min(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    pieces = [[symbol] if symbol in ids else [f"<0x{byte:02X}>" for byte in symbol.encode()] for symbol in symbols]
    return [ids[piece] for each in pieces for piece in each]


@pytest.mark.parametrize("space", [True, False])
def test_sentencepiece_vocabulary(tmp_path: Path, space: bool) -> None:
    tokens, scores, types = pieces_with_scores()
    fields = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, "add_space_prefix": space}
    side = text_of_gguf(Header(**fields))
    assert (side.bos, dict(side.special), set(side.stop)) == (1, {"bos_token": "<s>", "eos_token": "</s>"}, {2})
    tokenizer, prefix = opened(side, tmp_path), " " if space else ""
    for text in ("the cat sat on the mat", "  Say   something?", "日本 naïve 🙂", "\n\tprint('hi')", "12 + 34"):
        ids = tokenizer.encode(text)
        assert ids == [1, *spm(prefix + text, tokens, scores)]
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_raw("cat</s>sat") == [*spm(prefix + "cat", tokens, scores), 2, *spm(prefix + "sat", tokens, scores)]


def test_sentencepiece_without_scores_is_refused() -> None:
    tokens, scores, _ = pieces_with_scores()
    with refused("has no numbers in tokenizer.ggml.scores"):
        text_of_gguf(Header(model="llama", tokens=tokens))
    with refused("cannot read the tokenizer of model.gguf: it has .* pieces and 3 scores"):
        text_of_gguf(Header(model="llama", tokens=tokens, scores=scores[:3]))


def test_odd_vocabularies(tmp_path: Path) -> None:
    """As in llama.cpp: an empty token has a name, and no token is there twice."""
    side = text_of_gguf(header("", "<x>", types={"": 1}))
    assert opened(side, tmp_path).encode("the<x>")[-1] == len(byte_level()["model"]["vocab"]) + 1
    with refused("has the token 'the' twice"):
        text_of_gguf(header("the", "the"))


def test_a_gguf_without_a_pre_tokenizer_warns() -> None:
    assert any("does not say how it divides words" in warning for warning in text_of_gguf(header(pre=None)).warnings)


SMALL = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "bos_token_id": 0, "eos_token_id": 1, "add_bos_token": True}


@pytest.mark.parametrize("nothing", [-1, 0xFFFFFFFF])
def test_an_id_that_is_none_is_ignored_with_a_warning(nothing: int) -> None:
    side = text_of_gguf(Header(**{**SMALL, "bos_token_id": nothing, "eos_token_id": nothing}, pre="gpt-2"))
    assert (side.bos, dict(side.stop)) == (None, {})
    assert side.warnings == tuple(f"the GGUF has {nothing} for its {name} token, which is ignored" for name in ("bos", "eos"))
    assert "no file says which token ends an answer" in side.all_warnings[-1]


def test_tokens_of_a_small_vocabulary() -> None:
    side = text_of_gguf(Header(**SMALL, eot_token_id=2))
    assert (tuple(side.stop), side.bos, dict(side.templates)) == ((1, 2), 0, {})
    assert text_of_gguf(Header(**{name: value for name, value in SMALL.items() if name != "bos_token_id"})).bos is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "model.gguf has no strings in tokenizer.ggml.tokens — "),
        ({"tokens": [1, 2]}, "has no strings in tokenizer.ggml.tokens — "),
        ({"merges": None}, "has no strings in tokenizer.ggml.merges — "),
        ({"merges": ["ab"]}, "cannot read the tokenizer of model.gguf: .* — the file is damaged"),
        ({"merges": ["a c"]}, "cannot read the tokenizer of model.gguf: .* — the file is damaged"),
        ({"bos_token_id": 3}, "model.gguf has 3 for its bos token — the file is damaged"),
        ({"eos_token_id": "b"}, "has 'b' for its eos token — "),
    ],
)
def test_impossible_vocabulary_is_refused(changes: dict[str, Any], message: str) -> None:
    with refused(message):
        text_of_gguf(Header(**{**SMALL, **changes}))
