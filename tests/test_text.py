"""Detokenizer, stop strings, templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import EngineDirError, PromptError
from runtime.manifest import Tokens
from runtime.text import Detokenizer, StopStrings, Text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Byte-level BPE without a single merge but two: nearly every character of more than one byte spans tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    root = tmp_path_factory.mktemp("text")
    tokenizer.save(str(root / "tokenizer.json"))
    (root / "chat.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('no ' + m['role']) }}"
        "{% endif %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return Text(root, Tokens("tokenizer.json", "chat.jinja", (258,), None))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_pieces_join_to_the_text_and_are_whole_characters(text: Text, original: str) -> None:
    ids = text.encode(original)
    detokenizer = Detokenizer(text)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == text.decode(ids) == original
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in original


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=30))
def test_any_tokens_join_to_their_decoding(text: Text, ids: list[int]) -> None:
    detokenizer = Detokenizer(text)
    assert "".join([*(detokenizer.push(token) for token in ids), detokenizer.flush()]) == text.decode(ids)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab\n", max_size=4), max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_where_the_first_one_starts(pieces: list[str], stops: list[str]) -> None:
    whole, shown, states = "".join(pieces), "", StopStrings(tuple(stops))
    for piece in pieces:
        shown += states.push(piece)
        if states.found:
            break
    else:
        shown += states.flush()
    so_far = ""
    for piece in pieces:  # the earliest stop of the shortest prefix that holds one
        so_far += piece
        places = [so_far.find(stop) for stop in stops if stop in so_far]
        if places:
            assert states.found
            assert shown == so_far[: min(places)]
            return
    assert not states.found
    assert shown == whole


def test_chat_goes_through_the_template(text: Text) -> None:
    ids = text.encode([{"role": "user", "content": "hi"}])
    assert text.decode(ids) == "user: hi\nassistant:"


@pytest.mark.parametrize(
    "messages",
    [[{"role": "tool", "content": "x"}], [{"content": "x"}], [{"role": "user"}], [{"role": "user", "content": None}], ["text"], [{}, 3]],
    ids=str,
)
def test_bad_messages_are_one_line(text: Text, messages: list[dict[str, str]]) -> None:
    with pytest.raises(PromptError, match=r"message|template") as caught:
        text.encode(messages)
    assert "\n" not in str(caught.value)


def test_lone_surrogates_are_no_text(text: Text) -> None:
    with pytest.raises(PromptError, match="UTF-8"):
        text.encode("caf\udce9")


def test_model_without_a_template_says_so(text: Text, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text._tokenizer.to_str())
    bare = Text(tmp_path, Tokens("tokenizer.json", None, (), None))
    with pytest.raises(PromptError, match="no chat template"):
        bare.encode([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("content", ["", "{", json.dumps({"model": {"type": "Nonsense"}})])
def test_damaged_tokenizer_is_an_engine_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(EngineDirError, match=r"tokenizer\.json"):
        Text(tmp_path, Tokens("tokenizer.json", None, (), None))


def test_template_cannot_reach_python(text: Text, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text._tokenizer.to_str())
    (tmp_path / "chat.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    hostile = Text(tmp_path, Tokens("tokenizer.json", "chat.jinja", (), None))
    with pytest.raises(PromptError, match="refuses"):
        hostile.encode([{"role": "user", "content": "hi"}])
