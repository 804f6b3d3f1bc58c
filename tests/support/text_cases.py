"""Small directories whose files say something about text: what transformers makes of each is the reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import chat_templates as chat
from tests.support.tiny_tokenizers import begin, byte_level, sentencepiece, special, unigram, word_level, word_piece

IM = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA3_MARKS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>")
FAST = "PreTrainedTokenizerFast"


@dataclass(frozen=True)
class TextCase:
    """``files``: content by name, JSON unless it is text. ``config``: of config.json, beside the model type."""

    name: str
    files: Mapping[str, Any]
    model: str = "llama"
    config: Mapping[str, Any] = field(default_factory=lambda: {"bos_token_id": 1, "eos_token_id": 2})

    def write(self, directory: Path) -> Path:
        """Write the directory."""
        for name, content in {"config.json": {"model_type": self.model, **self.config}, **self.files}.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return directory


def case(name: str, tokenizer: Mapping[str, Any], settings: Mapping[str, Any] | None = None, /, **more: Any) -> TextCase:
    """A directory with tokenizer.json and tokenizer_config.json (None: without). ``more``: fields of TextCase; ``also``: other files."""
    files = {"tokenizer.json": tokenizer, **({} if settings is None else {"tokenizer_config.json": settings}), **more.pop("also", {})}
    return TextCase(name, files, **more)


def flags(text: str, **changed: bool) -> dict[str, Any]:
    """An entry of added_tokens_decoder."""
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True, **changed}


def typed(text: str, **changed: bool) -> dict[str, Any]:
    """A special token as older files store it."""
    return {"__type": "AddedToken", **{key: value for key, value in flags(text, **changed).items() if key != "special"}}


PLAIN = byte_level("<unk>", "<s>", "</s>")
MARKED = byte_level(*IM, size=330)
CHATML = {"tokenizer_class": FAST, "chat_template": chat.CHATML}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
END = len(PLAIN["model"]["vocab"])
ENDS = {"0": flags("<unk>"), "1": flags("<s>"), "2": flags("</s>")}
DECODER = {str(END): flags("<|im_start|>"), str(END + 1): flags("<|im_end|>")}
NOT_SPECIAL = special("<|im_start|>", "<|im_end|>", first=END, special=False)
CUT = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
FILL = {"strategy": {"Fixed": 32}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}

TRUNCATION = [
    case("truncation", {**MARKED, "truncation": CUT}, CHATML),
    case("padding", {**MARKED, "padding": FILL}, CHATML),
    case("both, of a class", {**sentencepiece(), "truncation": CUT, "padding": FILL}, {"tokenizer_class": "LlamaTokenizer"}),
    case("model_max_length", MARKED, {**CHATML, "model_max_length": 4}),
]
ADDED = [
    case("added_tokens_decoder", PLAIN, {**CHATML, "added_tokens_decoder": DECODER}),
    case("added_tokens.json", PLAIN, CHATML, also={"added_tokens.json": {"<|im_start|>": END, "<|im_end|>": END + 1}}),
    case("added_tokens.json names special ones", PLAIN, {**CHATML, **NAMED, "eos_token": "<|im_end|>"},
         also={"added_tokens.json": {"<|im_end|>": END, "<|im_start|>": END + 1}}),
    case("added_tokens.json beside the decoder", PLAIN, {**CHATML, "added_tokens_decoder": {str(END): flags("<|im_end|>")}},
         also={"added_tokens.json": {"<|im_start|>": END + 1}}),
    case("special_tokens_map.json", PLAIN, CHATML, also={"special_tokens_map.json": {
        "eos_token": "<|im_end|>", "bos_token": flags("<s>"), "additional_special_tokens": ["<|im_start|>"]}}),
    case("special_tokens_map.json with null", PLAIN, {**CHATML, **NAMED}, also={"special_tokens_map.json": {"bos_token": None}}),
    case("extra_special_tokens as a list", PLAIN, {**CHATML, "extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}),
    case("extra_special_tokens as names", PLAIN, {"chat_template": chat.FEATURES, "extra_special_tokens": {"image_token": "<img>"}}),
    case("additional_special_tokens", PLAIN, {**CHATML, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}),
    case("a token of its own name", PLAIN, {"chat_template": chat.FEATURES, "image_token": "<image>", **NAMED}),
    case("flags of the decoder", PLAIN, {**CHATML, "added_tokens_decoder": {str(END): flags("<|im_start|>", rstrip=True),
         str(END + 1): flags("<|im_end|>", lstrip=True), str(END + 2): flags("cat", special=False, normalized=True, single_word=True)}}),
    case("other flags than tokenizer.json", MARKED, {**CHATML, "added_tokens_decoder": {"4": flags("<|im_end|>", special=False)}}),
    case("a text and an object for one token", PLAIN, {**CHATML, "additional_special_tokens": ["<|im_end|>"]},
         also={"special_tokens_map.json": {"eos_token": flags("<|im_end|>", rstrip=True)}}),
    case("names and a list", PLAIN, {**CHATML, "extra_special_tokens": {"a_token": "<s>"}, "additional_special_tokens": ["<|im_start|>"]}),
    case("an object and added_tokens.json", sentencepiece(), {"tokenizer_class": FAST, "bos_token": typed("cat", lstrip=True)},
         also={"added_tokens.json": {"cat": 900}}),
    case("an unknown class and other flags", MARKED, {**CHATML, "tokenizer_class": "HouseTokenizer",
         "added_tokens_decoder": {"4": flags("<|im_end|>", special=False, normalized=True)}}),
    case("special in one file only", PLAIN, CHATML, also={"added_tokens.json": {"</s>": END, "<|im_end|>": END + 1}}),
    case("ids that are taken", PLAIN, {**CHATML, "added_tokens_decoder": {str(END + 7): flags("<|im_start|>")}}),
    case("special tokens in the vocabulary only", {**MARKED, "added_tokens": []}, {**CHATML, **NAMED, "eos_token": "<|im_end|>"}),
    case("named tokens that are not special", {**PLAIN, "added_tokens": [*PLAIN["added_tokens"], *NOT_SPECIAL]},
         {**CHATML, "eos_token": "<|im_end|>", "pad_token": "<|im_start|>"}),
    case("named tokens that are not special, in the decoder", {**PLAIN, "added_tokens": [*PLAIN["added_tokens"], *NOT_SPECIAL]},
         {**CHATML, "eos_token": "<|im_end|>", "added_tokens_decoder": {str(END + 1): flags("<|im_end|>", special=False)}}),
    case("two entries for one special token", MARKED, {"tokenizer_class": "Qwen2Tokenizer"}, also={"added_tokens.json": {"<|im_end|>": 9}}),
    case("split special tokens", MARKED, {**CHATML, **NAMED, "split_special_tokens": True}),
]  # fmt: skip
STOPS = [
    case("eos of the tokenizer", MARKED, {**CHATML, "eos_token": "<|im_end|>", "bos_token": None}),
    case("bos and eos in a template", MARKED, {"chat_template": chat.BOS_EOS, "eos_token": "<|im_end|>", "bos_token": None}),
    case("no named tokens", MARKED, {"tokenizer_class": FAST, "chat_template": chat.BOS_EOS}, config={}),
    case("a list of ends", MARKED, {**CHATML, **NAMED}, also={"generation_config.json": {"eos_token_id": [4, 5]}}),
    case("null in config.json", MARKED, CHATML, config={"eos_token_id": None, "bos_token_id": None}),
    case("null in generation_config.json", MARKED, CHATML, also={"generation_config.json": {"eos_token_id": None, "temperature": 0.6}}),
    case("ends of three files", MARKED, {**CHATML, "eos_token": "<|im_end|>"}, also={"generation_config.json": {"eos_token_id": 5}}),
    case("tokens as objects", MARKED, {**CHATML, "bos_token": typed("<s>"), "eos_token": typed("<|im_end|>", lstrip=True)}),
]
CLASSES = [
    case("LlamaTokenizer", sentencepiece(), {"tokenizer_class": "LlamaTokenizer", "chat_template": chat.LLAMA2}),
    case("LlamaTokenizerFast, legacy", sentencepiece(), {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, **NAMED}),
    case("LlamaTokenizer, legacy null", sentencepiece(), {"tokenizer_class": "LlamaTokenizer", "legacy": None}),
    case("LlamaTokenizer without a space", sentencepiece(), {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
    case("LlamaTokenizer, switches", sentencepiece(), {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True}),
    case("LlamaTokenizer, bare", {**sentencepiece(), "post_processor": None}, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}),
    case("LlamaTokenizer, null", sentencepiece(), {"tokenizer_class": "LlamaTokenizer", "bos_token": None, "chat_template": chat.LLAMA2}),
    case("LlamaTokenizer of a byte-level file", MARKED, {"tokenizer_class": "LlamaTokenizerFast", **NAMED, "add_bos_token": True}),
    case("CodeLlamaTokenizer", sentencepiece(), {"tokenizer_class": "CodeLlamaTokenizer", **NAMED}),
    case("GPT2Tokenizer", byte_level(*IM, split=True), {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    case("GPT2Tokenizer, named", MARKED, {"tokenizer_class": "GPT2Tokenizer", **NAMED, "chat_template": chat.CHATML}),
    case("GPTNeoXTokenizer", {**MARKED, "post_processor": begin("<s>", 1)}, {"tokenizer_class": "GPTNeoXTokenizerFast"}),
    case("CohereTokenizer", MARKED, {"tokenizer_class": "CohereTokenizerFast", **NAMED}),
    case("CodeGenTokenizer", MARKED, {"tokenizer_class": "CodeGenTokenizer", **NAMED}),
    case("GemmaTokenizer", sentencepiece("gemma"), {"tokenizer_class": "GemmaTokenizer", **NAMED, "chat_template": chat.GEMMA}),
    case("a class and added tokens", sentencepiece(), {"tokenizer_class": "LlamaTokenizer", "chat_template": chat.CHATML,
         "added_tokens_decoder": {**ENDS, "500": flags("<|im_start|>"), "501": flags("<|im_end|>", normalized=True)}}),
    case("a class and other tokens of tokenizer.json", sentencepiece(), {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder":
         {"1": flags("<s>"), "2": flags("</s>", special=False)}}),
    case("a class and an old file", sentencepiece(), {"tokenizer_class": "LlamaTokenizer"},
         also={"special_tokens_map.json": {"eos_token": flags("<x>"), "additional_special_tokens": ["<y>"]},
               "added_tokens.json": {"<z>": 600}}),
    case("CodeLlamaTokenizer, null", sentencepiece(), {"tokenizer_class": "CodeLlamaTokenizer", "bos_token": None}),
    case("CohereTokenizer, flags", MARKED, {"tokenizer_class": "CohereTokenizer", "bos_token": typed("<|im_start|>", single_word=True)}),
    case("class in config.json", sentencepiece(), {}, config={"tokenizer_class": "LlamaTokenizer", "eos_token_id": 2}),
    case("unknown class", sentencepiece(), {"tokenizer_class": "HouseTokenizer"}),
    case("a class of another kind", word_piece(), {"tokenizer_class": "BertTokenizer"}),
    case("qwen2", MARKED, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "chat_template": chat.QWEN},
         model="qwen2", config={}),
    case("qwen2 with added tokens", PLAIN, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": DECODER,
         "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|new|>"], "chat_template": chat.QWEN}, model="qwen2"),
    case("cohere with added tokens", PLAIN, {"tokenizer_class": "CohereTokenizer", "added_tokens_decoder": DECODER}),
    case("gemma with added tokens", sentencepiece("gemma"), {"tokenizer_class": "GemmaTokenizer", "added_tokens_decoder": ENDS}),
    case("qwen2 with another class", MARKED, {"tokenizer_class": "LlamaTokenizerFast", **NAMED}, model="qwen2"),
    case("qwen3 without a class", MARKED, {"chat_template": chat.QWEN, "eos_token": "<|im_end|>"}, model="qwen3"),
    case("qwen3 as Llama", MARKED, {"tokenizer_class": "LlamaTokenizerFast", **NAMED, "chat_template": chat.DEEPSEEK}, model="qwen3"),
    case("mistral", sentencepiece("mistral"), {"tokenizer_class": "LlamaTokenizer", "legacy": True, **NAMED, "chat_template": chat.MISTRAL},
         model="mistral"),
]  # fmt: skip
KINDS = [
    case("llama 2 as it is", sentencepiece(), {"tokenizer_class": FAST, **NAMED, "chat_template": chat.VICUNA}),
    case("llama 3", {**byte_level(*LLAMA3_MARKS, split=True), "post_processor": begin("<|begin_of_text|>", 0)},
         {"tokenizer_class": FAST, "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": chat.LLAMA3},
         config={"bos_token_id": 0, "eos_token_id": [1, 4]}),
    case("bos and eos around texts", {**MARKED, "post_processor": begin("<s>", 1, ("</s>", 2))}, CHATML),
    case("unigram", unigram(), {"tokenizer_class": FAST, **NAMED}),
    case("unigram with bytes", unigram(fallback=True), {"tokenizer_class": FAST, **NAMED}),
    case("word pieces", word_piece(), {"tokenizer_class": FAST, "unk_token": "[UNK]"}),
    case("words", word_level(), {"tokenizer_class": FAST, **NAMED}),
    case("tokenizer.json alone", MARKED, None),
    case("several versions", PLAIN, {**CHATML, "fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]},
         also={"tokenizer.4.0.0.json": MARKED}),
    case("tokens that overlap", {**PLAIN, "added_tokens": [*PLAIN["added_tokens"], *special("<a>", "<a><a>", first=END)]}, CHATML),
]  # fmt: skip
MORE = "additional_chat_templates"
TWO = [{"name": "default", "template": chat.CHATML}, {"name": "tool_use", "template": chat.FEATURES}]
TEMPLATES = [
    case("named templates", MARKED, {"chat_template": TWO}),
    case("named templates without a default", MARKED, {"chat_template": TWO[1:]}),
    case("chat_template.jinja", MARKED, {"chat_template": "no"}, also={"chat_template.jinja": chat.CHATML}),
    case("additional_chat_templates", MARKED, {"chat_template": "no"}, also={
        "chat_template.jinja": chat.CHATML, f"{MORE}/tool_use.jinja": chat.QWEN, f"{MORE}/rag.jinja": "x"}),
    case("phi", MARKED, {"chat_template": chat.PHI, **NAMED}),
    case("generation", MARKED, {"chat_template": chat.GENERATION}),
    case("features", MARKED, {"chat_template": chat.FEATURES, **NAMED, "pad_token": "</s>", "cls_token": None}),
    case("dates and loop controls", MARKED, {"chat_template": chat.DATED}),
    case("no template", MARKED, NAMED),
]  # fmt: skip
CASES = [*TRUNCATION, *ADDED, *STOPS, *CLASSES, *KINDS, *TEMPLATES]
