"""Tokenizer, chat template, detokenizer, stop strings, and the bytes of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import PLAIN, FixedPolicy
from runtime import EngineDirError, PromptError, SamplingParams
from runtime.manifest.schema import Tokens
from runtime.request import Request
from runtime.serve.openai.answer import TokenSpeller
from runtime.text.detokenizer import Detokenizer, StopStrings
from runtime.text.prompt import encode
from runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level BPE with only two merges, so nearly every multi-byte character spans several tokens."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "th", "the"])}
    bpe = tokenizers.Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    root = tmp_path_factory.mktemp("text")
    bpe.save(str(root / "tokenizer.json"))
    (root / "chat.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('no ' + m['role']) }}"
        "{% endif %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return Tokenizer(root, Tokens("tokenizer.json", {"default": "chat.jinja"}, (258,), None))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_pieces_join_to_the_text_and_are_whole_characters(tokenizer: Tokenizer, original: str) -> None:
    ids = tokenizer.encode(original)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids) == original
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in original


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=30))
def test_any_tokens_join_to_their_decoding(tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert "".join([*(detokenizer.push(token) for token in ids), detokenizer.flush()]) == tokenizer.decode(ids)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A SentencePiece tokenizer as in Llama 2: marks for spaces, a fallback token for every byte, no space at a text's beginning."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models

    known = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "he", "é", "▁▁", "<0xZZ>", "a", "<0x"]
    bpe = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(known)}, [], byte_fallback=True))
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    bpe.add_tokens([AddedToken("<think>", normalized=False)])
    root = tmp_path_factory.mktemp("pieces")
    bpe.save(str(root / "tokenizer.json"))
    return Tokenizer(root, Tokens("tokenizer.json", {}, (2,), 1))


def joined(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    first = next((at for at, token in enumerate(ids) if tokenizer.token_bytes(token)), 0)
    return b"".join(tokenizer.token_bytes(token, first=at == first) for at, token in enumerate(ids))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=30))
def test_bytes_of_byte_level_tokens_join_to_any_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert joined(tokenizer, ids).decode("utf-8", "replace") == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 267), max_size=12) | st.text(max_size=9).map(lambda whole: [3 + byte for byte in whole.encode()]))
def test_bytes_of_sentencepiece_tokens_join_to_the_text(pieces: Tokenizer, ids: list[int]) -> None:
    whole = pieces.decode(ids)
    if "\ufffd" not in whole:  # for invalid UTF-8 the decoder drops all neighbouring bytes, not only the invalid ones
        assert joined(pieces, ids).decode() == whole


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, *(3 + byte for byte in b"A\x80\xa0\xbd\xc3\xe4\xf0"), 259, 260, 262, 266]), max_size=9))
def test_whole_streamed_and_joined_text_agree_where_characters_are_cut(pieces: Tokenizer, ids: list[int]) -> None:
    """The decoder of the tokenizers package drops all neighbours of an incomplete character, which a stream has shown already."""
    detokenizer = Detokenizer(pieces)
    streamed = "".join([*(detokenizer.push(token) for token in ids), detokenizer.flush()])
    assert streamed == pieces.decode(ids) == joined(pieces, ids).decode("utf-8", "replace")


ANSWERS = (["▁the", "▁", "he"], ["▁▁", "a"], ["</s>", "▁the"], ["▁", "▁the"], ["<0x20>", "▁the"])
PROMPTS = (["<s>"], ["<s>", "▁the"], ["▁"], ["<s>", "a", "</s>"], ["<s>", "</s>"], ["<think>"])


@pytest.mark.parametrize("answer", ANSWERS, ids="".join)
@pytest.mark.parametrize("prompt", PROMPTS, ids="".join)
def test_an_answer_is_what_it_adds_to_the_text_of_its_prompt(pieces: Tokenizer, prompt: list[str], answer: list[str]) -> None:
    """As in transformers' pipeline, llama.cpp's server and vLLM: only a text that begins loses its first space."""
    before, ids = ([pieces._tokenizer.token_to_id(name) for name in names] for names in (prompt, answer))
    detokenizer, speller = Detokenizer(pieces, before), TokenSpeller(pieces, before)  # type: ignore[arg-type]
    streamed = "".join([*(detokenizer.push(token) for token in ids), detokenizer.flush()])
    spelled = []
    for token in ids:
        spelled.append(speller.text_bytes(token))
        speller.advance(token)
    expected = pieces.decode([*before, *ids])[len(pieces.decode(before)) :]
    assert streamed == expected == b"".join(spelled).decode()
    if pieces.decode(before):
        assert b"".join(map(pieces.token_bytes, ids)).decode() == expected


class Ready(Request):
    """A request whose first token is known."""

    def _prefill(self, *_: Any) -> Any:
        return SimpleNamespace(token=260)


@pytest.mark.parametrize(("prompt", "stop", "text"), [((1, 261), (), " the"), ((1,), (), "the"), ((1, 261), (" the",), "")])
def test_a_request_continues_its_prompt(pieces: Tokenizer, prompt: tuple[int, ...], stop: tuple[str, ...], text: str) -> None:
    params: Any = SamplingParams(max_new_tokens=1, stop=stop)
    request = Ready(prompt, params, None, FixedPolicy(PLAIN), frozenset())  # type: ignore[arg-type]
    chunks = request.run(SimpleNamespace(room=0), None, pieces)  # type: ignore[arg-type]
    assert ("".join(chunk.text for chunk in chunks), request.stop) == (text, "stop_string" if stop else "length")


def test_a_token_costs_the_same_wherever_it_stands(tokenizer: Tokenizer, pieces: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that never become a character are not decoded again with every token."""
    for each, invalid in ((tokenizer, tokenizer._tokenizer.token_to_id("Ģ")), (pieces, 3 + 0x80)):
        monkeypatch.setattr(each, "decode", lambda _: pytest.fail("decodes a text again"))
        detokenizer = Detokenizer(each)
        assert "".join(detokenizer.push(invalid) for _ in range(50)) == "\ufffd" * 50
        monkeypatch.undo()


def test_words_with_a_suffix_keep_their_spaces(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models

    words = tokenizers.Tokenizer(models.BPE({"the</w>": 0, "c": 1, "at</w>": 2}, [], end_of_word_suffix="</w>"))
    words.decoder = decoders.BPEDecoder()
    words.save(str(tmp_path / "tokenizer.json"))
    ended = Tokenizer(tmp_path, Tokens("tokenizer.json", {}, (), None))
    detokenizer = Detokenizer(ended)
    streamed = "".join([*(detokenizer.push(token) for token in (0, 1, 2, 0)), detokenizer.flush()])
    assert streamed == ended.decode([0, 1, 2, 0]) == ended.token_bytes.join([0, 1, 2, 0]).decode() == "the cat the "


def test_a_character_that_the_limit_cuts_keeps_the_ones_before_it(pieces: Tokenizer) -> None:
    ids = [3 + byte for byte in "你好".encode()[:-1]]
    assert pieces.decode(ids) == "你\ufffd"


def test_bytes_of_single_tokens(tokenizer: Tokenizer, pieces: Tokenizer) -> None:
    (first, second) = tokenizer.encode("é")
    assert (tokenizer.token_bytes(first), tokenizer.token_bytes(second)) == (b"\xc3", b"\xa9")
    assert (tokenizer.token_bytes(258), tokenizer.token_bytes(258, special=True), tokenizer.token_bytes(9999)) == (b"", b"<end>", b"")
    ids = {name: pieces._tokenizer.token_to_id(name) for name in ("<0x0A>", "<0xZZ>", "▁the", "▁▁", "</s>", "<think>")}
    assert pieces.token_bytes(ids["<0x0A>"]) == b"\n"
    assert pieces.token_bytes(ids["<0xZZ>"]) == b"<0xZZ>"
    assert (pieces.token_bytes(ids["▁the"]), pieces.token_bytes(ids["▁the"], first=True)) == (b" the", b"the")
    assert pieces.token_bytes(ids["▁▁"], first=True) == b" "
    assert (pieces.token_bytes(ids["</s>"]), pieces.token_bytes(ids["</s>"], special=True)) == (b"", b"</s>")
    assert pieces.token_bytes(ids["<think>"]) == b"<think>"  # an added token that is not special is part of the text


def test_bytes_of_word_level_tokens(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import models

    tokenizers.Tokenizer(models.WordLevel({"one": 0, "two": 1}, "one")).save(str(tmp_path / "tokenizer.json"))
    words = Tokenizer(tmp_path, Tokens("tokenizer.json", {}, (), None))
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


@pytest.mark.parametrize(
    ("stop", "shown"),
    [("<end>", "th"), ("<end>th", "th"), ("h<end>", "t"), ("<end>the", None), ("end>", None), ("<e", None)],
)
def test_stop_strings_find_special_tokens_that_the_text_omits(tokenizer: Tokenizer, stop: str, shown: str | None) -> None:
    ids = [256, 258, 256, 257]  # th <end> th the
    stops, detokenizer, text = StopStrings([stop], tokenizer.hidden), Detokenizer(tokenizer), ""
    for token in ids:
        text += stops.push(detokenizer.push(token), token)
        if stops.found:
            break
    assert (stops.found, text + stops.flush()) == (shown is not None, "thththe" if shown is None else shown)


def test_stop_strings_find_the_text_of_a_special_token_as_well(tokenizer: Tokenizer) -> None:
    stops = StopStrings(["<end>"], tokenizer.hidden)
    assert (stops.push("a<en"), stops.push("d>b"), stops.found) == ("a", "", True)


@pytest.mark.parametrize(("stop", "text"), [((), "<end>th\ufffd<end>the"), (("d>t",), "<en"), (("<end>the",), "<end>th\ufffd")])
def test_special_tokens_are_shown_to_whom_asks(tokenizer: Tokenizer, stop: tuple[str, ...], text: str) -> None:
    (part,) = tokenizer.encode_raw("é")[:1]  # half of a character
    request = Request([0], SamplingParams(shown=["<end>", "unknown"], stop=stop), None, None, frozenset())  # type: ignore[arg-type]
    request.open(tokenizer)
    chunk, rest = request.chunk((258, 256, part, 258, 257), None), request.end()
    assert chunk.text + (rest.text if rest else "") == text


def test_ids_of_a_text_are_within_the_models_vocabulary(tokenizer: Tokenizer) -> None:
    """A tokenizer may know tokens that the model has no embedding for."""
    for prompt in ("the<end>", [{"role": "user", "content": "the<end>"}]):
        assert 258 in encode(prompt, tokenizer, 259, 100)
        with pytest.raises(PromptError, match="contains '<end>', token 258 of the tokenizer, but the model knows 258 tokens") as caught:
            encode(prompt, tokenizer, 258, 100)
        assert caught.value.kind == "token_ids"


def test_chat_goes_through_the_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "user: hi\nassistant:"


@pytest.mark.parametrize(
    "messages",
    [[{"role": "tool", "content": "x"}], [{"content": "x"}], [{"role": "user"}], [{"role": "user", "content": None}], ["text"], [{}, 3]],
    ids=str,
)
def test_invalid_messages_raise_a_one_line_error(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> None:
    with pytest.raises(PromptError, match=r"message|template") as caught:
        tokenizer.encode(messages)
    assert "\n" not in str(caught.value)
    assert caught.value.kind == "messages"


def test_lone_surrogates_are_rejected(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="UTF-8") as caught:
        tokenizer.encode("caf\udce9")
    assert caught.value.kind == "not_text"


def test_chat_without_a_template_is_rejected(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer._tokenizer.to_str())
    bare = Tokenizer(tmp_path, Tokens("tokenizer.json", {}, (), None))
    with pytest.raises(PromptError, match="no chat template") as caught:
        bare.encode([{"role": "user", "content": "hi"}])
    assert caught.value.kind == "no_chat_template"


@pytest.mark.parametrize("content", ["", "{", json.dumps({"model": {"type": "Nonsense"}})])
def test_damaged_tokenizer_is_an_engine_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(EngineDirError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path, Tokens("tokenizer.json", {}, (), None))


def test_template_cannot_access_python_internals(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer._tokenizer.to_str())
    (tmp_path / "chat.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    hostile = Tokenizer(tmp_path, Tokens("tokenizer.json", {"default": "chat.jinja"}, (), None))
    with pytest.raises(PromptError, match="refuses"):
        hostile.encode([{"role": "user", "content": "hi"}])
