"""Detokenizer, stop strings, templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import EngineDirError, PromptError
from runtime.manifest.schema import Tokens
from runtime.text.detokenizer import Detokenizer, StopStrings
from runtime.text.tokenizer import Text


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


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """SentencePiece's family, as Llama 2 has it: pieces with a mark for spaces, a token for every byte, one space less at the beginning."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    known = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "he", "é", "▁▁", "<0xZZ>", "a", "<0x"]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(known)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    root = tmp_path_factory.mktemp("pieces")
    tokenizer.save(str(root / "tokenizer.json"))
    return Text(root, Tokens("tokenizer.json", None, (2,), 1))


def joined(text: Text, ids: list[int]) -> bytes:
    first = next((at for at, token in enumerate(ids) if text.token_bytes(token)), 0)
    return b"".join(text.token_bytes(token, first=at == first) for at, token in enumerate(ids))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=30))
def test_bytes_of_byte_level_tokens_join_to_any_text(text: Text, ids: list[int]) -> None:
    assert joined(text, ids).decode("utf-8", "replace") == text.decode(ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 267), max_size=12) | st.text(max_size=9).map(lambda whole: [3 + byte for byte in whole.encode()]))
def test_bytes_of_pieces_join_to_the_text(pieces: Text, ids: list[int]) -> None:
    whole = pieces.decode(ids)
    if "\ufffd" not in whole:  # there the decoder gives up all bytes of a row, not only the wrong ones
        assert joined(pieces, ids).decode() == whole


def test_bytes_of_single_tokens(text: Text, pieces: Text) -> None:
    (first, second) = text.encode("é")
    assert (text.token_bytes(first), text.token_bytes(second)) == (b"\xc3", b"\xa9")
    assert (text.token_bytes(258), text.token_bytes(258, special=True), text.token_bytes(9999)) == (b"", b"<end>", b"")
    ids = {name: pieces._tokenizer.token_to_id(name) for name in ("<0x0A>", "<0xZZ>", "▁the", "▁▁", "</s>", "<think>")}
    assert pieces.token_bytes(ids["<0x0A>"]) == b"\n"
    assert pieces.token_bytes(ids["<0xZZ>"]) == b"<0xZZ>"
    assert (pieces.token_bytes(ids["▁the"]), pieces.token_bytes(ids["▁the"], first=True)) == (b" the", b"the")
    assert pieces.token_bytes(ids["▁▁"], first=True) == b" "
    assert (pieces.token_bytes(ids["</s>"]), pieces.token_bytes(ids["</s>"], special=True)) == (b"", b"</s>")
    assert pieces.token_bytes(ids["<think>"]) == b"<think>"  # added, and a part of the text


def test_bytes_of_words(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"one": 0, "two": 1}, "one")).save(str(tmp_path / "tokenizer.json"))
    words = Text(tmp_path, Tokens("tokenizer.json", None, (), None))
    assert joined(words, [0, 1, 0]).decode() == words.decode([0, 1, 0]) == "one two one"


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
    assert caught.value.kind == "messages"


def test_lone_surrogates_are_no_text(text: Text) -> None:
    with pytest.raises(PromptError, match="UTF-8") as caught:
        text.encode("caf\udce9")
    assert caught.value.kind == "not_text"


def test_model_without_a_template_says_so(text: Text, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text._tokenizer.to_str())
    bare = Text(tmp_path, Tokens("tokenizer.json", None, (), None))
    with pytest.raises(PromptError, match="no chat template") as caught:
        bare.encode([{"role": "user", "content": "hi"}])
    assert caught.value.kind == "no_chat_template"


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
