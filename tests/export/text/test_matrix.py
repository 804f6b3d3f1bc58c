"""What an engine directory makes of text and chats equals what transformers makes of the same checkpoint directory."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from export.text.directory import text_of_directory
from export.text.side import TextSide
from runtime import PromptError
from runtime.text.detokenizer import Detokenizer
from runtime.text.tokenizer import Tokenizer
from tests.support.text_cases import CASES, TextCase

TEXTS = (
    *("the cat sat on the mat", " the  cat", "  ", "", "Say something.\n\nhi\tthere 12345", "naïve façade, cafe\u0301", "日本語 🙂 mixed"),
    *("<s>the cat</s> sat", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>", "<|eot_id|> <|begin_of_text|>hi"),
    "a<unk>b <img><image> cat <a><a><a>",
)
USER, SYSTEM = {"role": "user", "content": "the cat sat <s> on "}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\non the mat", "reasoning": "because"}
FUNCTION = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, "é"]}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [FUNCTION]}
SCHEMA = {"name": "add", "description": "Adds <numbers>", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}
CHATS: tuple[dict[str, Any], ...] = (
    {"messages": [USER]},
    {"messages": [SYSTEM, USER]},
    {"messages": [SYSTEM, USER, ANSWER, USER]},
    {"messages": [USER, CALL, {"role": "tool", "content": "3", "name": "add"}]},
    {"messages": [USER, USER]},
    {"messages": [USER], "tools": [TOOL]},
    {"messages": [USER], "tools": []},
    {"messages": [USER], "documents": [{"title": "T", "text": "a text"}]},
)


def ours(case: TextCase, root: Path) -> tuple[TextSide, Tokenizer]:
    """The text side of a case, and the runtime's tokenizer over the files of an engine directory."""
    side = text_of_directory(case.write(root / "checkpoint"))
    (root / "engine").mkdir()
    return side, Tokenizer(root / "engine", side.write(root / "engine"))


def chat_of(tokenizer: Any, chat: dict[str, Any]) -> tuple[str, list[int]] | None:
    """transformers' text and ids of a chat; None if the template refuses it."""
    arguments = {**chat, "conversation": chat["messages"], "add_generation_prompt": True}
    del arguments["messages"]
    try:
        text = tokenizer.apply_chat_template(**arguments, tokenize=False)
        return text, tokenizer.apply_chat_template(**arguments, return_dict=False)
    except Exception:
        return None


def ends(case: TextCase, directory: Path, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: transformers' generation config, and what the other files say."""
    stored = (directory / "generation_config.json").is_file()
    config = AutoConfig.from_pretrained(directory)
    generation = GenerationConfig.from_pretrained(directory) if stored else GenerationConfig.from_model_config(config)
    sources = [generation.eos_token_id, tokenizer.eos_token_id, case.config.get("eos_token_id")]
    return {token for ids in sources for token in (ids if isinstance(ids, list) else [ids]) if token is not None}


def expect_one_text(tokenizer: Tokenizer, vocab: int) -> None:
    """Of any ids the streamed text, the whole text and the joined bytes are the same, also where characters stay incomplete."""
    choice = Random(0)
    for _ in range(3):
        ids, detokenizer = [choice.randrange(vocab) for _ in range(10)], Detokenizer(tokenizer)
        streamed = "".join([*(detokenizer.push(token) for token in ids), detokenizer.flush()])
        assert streamed == tokenizer.decode(ids) == tokenizer.token_bytes.join(ids).decode("utf-8", "replace"), ids


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_directory_is_read_as_transformers_reads_it(case: TextCase, tmp_path: Path) -> None:
    side, mine = ours(case, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    for text in TEXTS:
        ids = theirs.encode(text)
        assert mine.encode(text) == ids, text
        assert mine.encode_raw(text) == theirs.encode(text, add_special_tokens=False), text
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert dict(side.special) == theirs.special_tokens_map
    assert set(side.stop) == ends(case, tmp_path / "checkpoint", theirs)
    expect_one_text(mine, theirs.vocab_size)
    for chat in CHATS:
        expected = chat_of(theirs, chat)
        if expected is None:
            with pytest.raises(PromptError):
                mine.render(**chat)
        else:
            assert mine.render(**chat) == expected[0]
            if "tools" not in chat and "documents" not in chat:
                assert mine.encode(chat["messages"]) == expected[1]


def test_the_matrix_is_large_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
