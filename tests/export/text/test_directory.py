"""What a directory says about text reaches whoever exports it: in the manifest, in a dry run, and as warnings."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from export.text.directory import text_of_directory
from runtime import PromptError
from runtime.manifest.load import load_manifest
from runtime.text.tokenizer import Tokenizer
from tests.support.chat_templates import CHATML
from tests.support.checkpoints import refused
from tests.support.exporting import Run
from tests.support.text_cases import END, FAST, MARKED, PLAIN, case, flags
from tests.support.tiny_tokenizers import unigram, word_level

WORDS = word_level()
WITHOUT_UNKNOWN = {**WORDS, "added_tokens": [], "post_processor": None, "model": {**WORDS["model"], "vocab": {"the": 0, "cat": 1}}}
ASK = [{"role": "user", "content": "the cat"}]
BROKEN = [
    ("{% for m in messages %}{{ m.content }}", "it cannot be compiled (Unexpected end of template"),
    ("{{ messages | nosuchfilter }}", "it cannot be compiled (No filter named 'nosuchfilter'"),
    ("{{ messages[0].content.nothing.more }}", "it refuses every trial chat ("),
    ("{{ raise_exception('never') }}", "it refuses every trial chat (never)"),
]


@pytest.mark.parametrize(("template", "reason"), BROKEN)
def test_a_template_that_cannot_be_used_leaves_plain_text(tmp_path: Path, template: str, reason: str) -> None:
    """The directory opens, plain text works, and whoever asks for a chat learns why there is none."""
    side = text_of_directory(case("x", MARKED, {"chat_template": template}).write(tmp_path))
    assert any(warning.startswith(f"the chat template default cannot be used: {reason}") for warning in side.all_warnings)
    tokenizer = Tokenizer(tmp_path, side.write(tmp_path))
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    with pytest.raises(PromptError, match=r"chat template cannot be used: it .* — give the prompt as plain text") as caught:
        tokenizer.encode(ASK)
    assert caught.value.kind == "no_chat_template"


def test_a_broken_template_for_tools_does_not_hide_the_default(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{% endfor %}"}]
    side = text_of_directory(case("x", MARKED, {"chat_template": templates}).write(tmp_path))
    tokenizer = Tokenizer(tmp_path, side.write(tmp_path))
    assert tokenizer.render(ASK).startswith("<|im_start|>user")
    with pytest.raises(PromptError, match="cannot be used"):
        tokenizer.render(ASK, tools=[])


def test_export_tells_what_it_found(run: Run, source: Path, engines: Path) -> None:
    settings = {"eos_token": "<|im_end|>", "chat_template": [{"name": "default", "template": CHATML}, {"name": "a/b", "template": "{%"}]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    dry = run("--dry-run")
    assert "warning: the chat template a/b cannot be used" in dry.err
    assert "stop tokens 2 '</s>' from generation_config.json, config.json; 279 '<|im_end|>' from the tokenizer" in dry.out
    assert "chat templates default, a/b (unusable)" in dry.out
    found = json.loads(run("--dry-run", "--json").out)["text"]
    assert (set(found["stop"]), found["special"]["eos_token"]) == ({"2", "279"}, "<|im_end|>")
    assert run().code == 0
    tokens = load_manifest(engines / "tiny").tokens
    assert (set(tokens.stop), dict(tokens.chat_templates)) == ({2, 279}, {"default": "chat_template.jinja"})
    assert (dict(tokens.special), set(tokens.unusable)) == ({"eos_token": "<|im_end|>"}, {"a/b"})


def test_a_dry_run_of_a_hub_repository_downloads_no_weights(run: Run, source: Path, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(repository: str, allow_patterns: list[str], **_: Any) -> str:
        asked.extend(allow_patterns)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    ended = run("--weights", "owner/small", "--dry-run")
    assert "stop tokens 2 '</s>'" in ended.out, ended.err
    assert asked
    assert not [pattern for pattern in asked if "safetensors" in pattern or pattern == "*"]


@pytest.mark.parametrize(
    ("settings", "config", "also", "warning"),
    [
        ({}, {"eos_token_id": None}, {}, "no file says which token ends an answer"),
        (
            {},
            {"vocab_size": END, "eos_token_id": [2, END + 9]},
            {},
            f"token {END + 9} .* is outside of the model's {END} tokens",
        ),
        ({}, {"vocab_size": END, "eos_token_id": END + 9}, {}, "no file says which token ends an answer"),
        ({}, {"eos_token_id": -1}, {}, "config.json has -1 for eos_token_id, which is ignored"),
        ({}, {"bos_token_id": -1}, {}, "config.json has -1 for bos_token_id, which is ignored"),
        (
            {},
            {},
            {"generation_config.json": {"eos_token_id": 2, "stop_strings": ["</a>"]}},
            r"has stop_strings \['</a>'\], which are not applied: pass them as SamplingParams.stop",
        ),
        (
            {},
            {},
            {"generation_config.json": {"eos_token_id": 2, "suppress_tokens": [5], "bad_words_ids": None}},
            "suppress_tokens, which",
        ),
        (
            {"tokenizer_class": FAST},
            {},
            {"tokenizer.json": WITHOUT_UNKNOWN},
            "does not encode every text .*cannot encode are",
        ),
        ({}, {}, {"tokenizer_config.json": r'{"chat_template": "\ud83d{{ messages }}"}'}, "default cannot be used: it contains lone surr"),
        ({"chat_template": [{"name": "tool_use", "template": "x"}]}, {}, {}, "chat templates named tool_use and no default"),
        ({"added_tokens_decoder": {str(END + 7): flags("<x>")}}, {}, {}, f"1 added tokens .*'<x>' is {END}, not {END + 7}"),
    ],
)
def test_warnings(tmp_path: Path, settings: Any, config: Any, also: Any, warning: str) -> None:
    side = text_of_directory(case("x", PLAIN, settings, config=config, also=also).write(tmp_path))
    assert len([each for each in side.all_warnings if re.search(warning, each)]) == 1


@pytest.mark.parametrize("decoder", [None, {"4": flags("<|im_end|>")}])
def test_an_end_that_another_file_switches_off_still_ends_answers(tmp_path: Path, decoder: Any) -> None:
    """transformers' tokenizer then has no eos_token, or another; an answer still ends at each of them."""
    settings = {"eos_token": "<|im_end|>", **({} if decoder is None else {"added_tokens_decoder": decoder})}
    files = {"special_tokens_map.json": {"eos_token": None if decoder is None else "<|endoftext|>"}}
    side = text_of_directory(case("x", MARKED, settings, also=files).write(tmp_path))
    assert {side.names[token] for token in side.stop} == {"</s>", "<|im_end|>", *(["<|endoftext|>"] if decoder else [])}


def test_dropout_of_training_is_off(tmp_path: Path) -> None:
    directory = case("x", {**PLAIN, "model": {**PLAIN["model"], "dropout": 0.5}}).write(tmp_path)
    tokenizer = Tokenizer(tmp_path, text_of_directory(directory).write(tmp_path))
    assert len({tuple(tokenizer.encode("the cat sat on the mat")) for _ in range(30)}) == 1


def test_spaces_that_are_not_cleaned_up_are_told(tmp_path: Path) -> None:
    side = text_of_directory(case("x", unigram(), {"clean_up_tokenization_spaces": True}).write(tmp_path))
    assert any("clean_up_tokenization_spaces, which is not applied" in warning for warning in side.warnings)


def test_the_template_of_a_processor_stands_in(tmp_path: Path) -> None:
    directory = case("x", MARKED, {}, also={"chat_template.json": {"chat_template": CHATML}}).write(tmp_path)
    assert dict(text_of_directory(directory).templates) == {"default": CHATML}
    (directory / "chat_template.jinja").write_text("own")
    assert dict(text_of_directory(directory, "given").templates) == {"default": "own"}


def test_a_new_template_makes_an_engine_out_of_date(run: Run, source: Path) -> None:
    assert run().code == 0
    assert "is up to date" in run().out
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("x")
    assert "is ready" in run().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": {"added_tokens_decoder": {"1": 3}}}, "tokens in .*tokenizer_config.json: 3 is not a token"),
        ({"tokenizer_config.json": {"bos_token": ["<s>"]}}, "cannot read the tokens in .*tokenizer_config.json"),
        ({"added_tokens.json": {"<x>": "y"}}, "cannot read the tokens in .*added_tokens.json"),
        ({"special_tokens_map.json": {"bos_token": {"no": 1}}}, "cannot read the tokens in"),
        ({"tokenizer.json": {"model": 3}}, "tokenizer.json: it has no model with a vocabulary"),
        ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}}, "cannot read .*tokenizer.json: "),
        ({"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}, "tokenizer.json": {"model": {"type": "BPE", "vocab": 3}}},
         "cannot read .*tokenizer.json: "),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"4": "<x>"}}}, "tokens in .*tokenizer_config.json: '<x>' is not a token"),
        ({"tokenizer_config.json": {"tokenizer_class": ["LlamaTokenizer"]}}, r"has \['LlamaTokenizer'\] for tokenizer_class, "),
        ({"tokenizer_config.json": {"tokenizer_class": 5}}, "has 5 for tokenizer_class, which is not a name"),
        ({"tokenizer_config.json": r'{"eos_token": "\ud83d"}'}, "cannot read the tokens in .*tokenizer_config.json"),
        ({"special_tokens_map.json": "{"}, "special_tokens_map.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with refused(message):
        text_of_directory(case("x", PLAIN, also=files).write(tmp_path))


@pytest.mark.parametrize("broken", ["{", {"eos_token": ["</s>"]}])
def test_a_broken_map_beside_an_added_tokens_decoder_is_not_read(tmp_path: Path, broken: Any) -> None:
    settings = {"eos_token": "</s>", "added_tokens_decoder": {"2": flags("</s>")}}
    side = text_of_directory(case("x", MARKED, settings, also={"special_tokens_map.json": broken}).write(tmp_path))
    assert side.special == {"eos_token": "</s>"}


def test_a_prompt_that_the_tokenizer_cannot_encode(tmp_path: Path) -> None:
    side = text_of_directory(case("x", WITHOUT_UNKNOWN, {"tokenizer_class": FAST}).write(tmp_path))
    tokenizer = Tokenizer(tmp_path, side.write(tmp_path))
    assert tokenizer.encode("the cat") == [0, 1]
    with pytest.raises(PromptError, match=r"the tokenizer cannot encode the prompt: .*leave out what it does not know") as caught:
        tokenizer.encode("a dog")
    with pytest.raises(PromptError, match="the tokenizer cannot encode the prompt: "):
        tokenizer.encode_raw("a dog")
    assert caught.value.kind == "not_text"


def test_a_class_that_only_transformers_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = case("x", PLAIN, {"tokenizer_class": "HouseTokenizer"}).write(tmp_path)
    assert text_of_directory(directory).warnings == ()
    monkeypatch.setitem(sys.modules, "transformers", None)
    side = text_of_directory(directory)
    assert ["the tokenizer class HouseTokenizer is not known here" in warning for warning in side.warnings] == [True]
    assert Tokenizer(tmp_path, side.write(tmp_path)).encode("the cat")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.model": "\n\x0e"}, r"tokenizer.model cannot be converted \(pip install transformers sentencepiece\)"),
        ({"tokenizer.model": "IQ== 0"}, r"tokenizer.model cannot be converted \(pip install transformers tiktoken\)"),
        ({"qwen.tiktoken": "IQ== 0"}, r"qwen.tiktoken cannot be converted \(pip install transformers tiktoken\)"),
        ({"vocab.json": "{}", "merges.txt": ""}, r"vocab.json cannot be converted \(pip install transformers\)"),
        ({}, "has no tokenizer.json — it has no other tokenizer file either, download it again"),
    ],
)  # fmt: skip
def test_what_is_missing_where_there_is_no_tokenizer_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], message: str
) -> None:
    for package in ("transformers", "sentencepiece", "tiktoken"):
        monkeypatch.setitem(sys.modules, package, None)
    directory = case("x", PLAIN, also=files).write(tmp_path)
    (directory / "tokenizer.json").unlink()
    with refused(message):
        text_of_directory(directory)


def test_a_class_with_code_of_its_own_is_told(tmp_path: Path) -> None:
    """Code of a repository never runs, nor is anyone asked whether it may."""
    settings = {"tokenizer_class": "HouseTokenizer", "auto_map": {"AutoTokenizer": ["house.HouseTokenizer", None]}}
    directory = case("x", PLAIN, settings, also={"house.py": "raise SystemExit"}).write(tmp_path)
    (warning,) = text_of_directory(directory).warnings
    assert "HouseTokenizer is not known here, so tokenizer.json is used as it is (only code of its repository could, which never" in warning
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text("{}")
    with refused(r"no tokenizer.json — vocab.json cannot be converted \(only code of its repository could, which never runs"):
        text_of_directory(directory)
