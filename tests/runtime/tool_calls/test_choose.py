"""The format that a model's template and vocabulary tell, and the prompts that go with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.text.tokenizer import Chat, Tokenizer
from runtime.tool_calls.choose import FORMATS, choose
from runtime.tool_calls.functions import Function, Tools
from runtime.tool_calls.prompt import chat
from runtime.tool_calls.reasoning import MARKS
from tests.support.tool_models import MODELS, tool_model

TOOLS = Tools((Function("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}}),))
USER = {"role": "user", "content": "How is Rom?"}


def called(*cities: str, said: str | None = None) -> list[dict[str, Any]]:
    """A turn with calls, and their results."""
    ids = [f"abcdefgh{at}" for at in range(len(cities))]
    calls = [
        {"id": number, "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        for number, city in zip(ids, cities, strict=True)
    ]
    results = [{"role": "tool", "tool_call_id": number, "content": f"sun {number}"} for number in ids]
    return [{"role": "assistant", "content": said, "tool_calls": calls}, *results]


@pytest.mark.parametrize(
    ("name", "form", "reasoning", "special"),
    [
        ("plain", "hermes", None, 0),
        ("qwen", "hermes", "think", 0),
        ("llama", "llama", None, 1),
        ("mistral", "mistral", None, 1),
        ("mistral-args", "mistral-args", None, 3),
        ("deepseek", "deepseek", "think", 0),
        ("deepseek, special", "deepseek", "think", 7),
    ],
)
def test_the_format_is_found(name: str, form: str, reasoning: str | None, special: int, tmp_path: Path) -> None:
    found = choose(tool_model(name, tmp_path))
    assert (found.calls.name, found.reasoning) == (form, MARKS[reasoning] if reasoning else None)
    assert len(found.special) == len(found.shown(TOOLS)) == special
    assert found.template.tools == (name not in ("plain", "deepseek", "deepseek, special"))
    assert found.template.calls == (name != "plain")
    assert found.template.text_arguments == found.template.null_content == name.startswith("deepseek")
    assert found.template.system


def test_options_have_the_last_word(tmp_path: Path) -> None:
    tokenizer = tool_model("qwen", tmp_path)
    for name in FORMATS:
        assert choose(tokenizer, calls=name).calls.name == name
    assert choose(tokenizer, reasoning="none").reasoning is None
    assert choose(tokenizer, reasoning="mistral").reasoning == MARKS["mistral"]


@pytest.mark.parametrize("name", MODELS)
def test_prompts_describe_functions_and_have_calls_as_the_model_writes_them(name: str, tmp_path: Path) -> None:
    tokenizer = tool_model(name, tmp_path)
    form = choose(tokenizer)
    messages = [USER, *called("Rom"), {"role": "assistant", "content": "Sunny."}, USER]
    text = rendered(tokenizer, chat(form, messages, TOOLS, {}))
    assert "Tells the weather." in text
    assert form.calls.written([("weather", {"city": "Rom"})]).strip(" []").removesuffix("<｜tool▁calls▁end｜>") in text
    assert text.count("sun abcdefgh0") == 1
    assert text.rfind("Rom?") > text.rfind("Sunny.") > text.rfind("sun abcdefgh0")
    assert "Tells" not in rendered(tokenizer, chat(form, messages, None, {}))


def rendered(tokenizer: Tokenizer, prompt: Chat) -> str:
    return tokenizer.render(prompt.messages, prompt.tools, values=prompt.values, null_content=prompt.null_content)


def test_a_template_without_tools_gets_them_as_text(tmp_path: Path) -> None:
    form = choose(tool_model("plain", tmp_path))
    prompt = chat(form, [{"role": "system", "content": "Be brief."}, USER, *called("Rom", "Oslo", said="I look."), USER], TOOLS, {"x": 1})
    system, user, calls, results, last = prompt.messages
    assert (prompt.tools, prompt.values, user, last) == (None, {"x": 1}, USER, USER)
    assert system["content"].startswith("Be brief.\n\nYou can call functions.")
    assert '"name": "weather"' in system["content"]
    two = form.calls.written([("weather", {"city": "Rom"}), ("weather", {"city": "Oslo"})])
    assert calls == {"role": "assistant", "content": f"I look.\n{two}"}
    assert results["role"] == "user"
    assert results["content"].count("<tool_response>") == 2
    assert chat(form, [USER], TOOLS, {}).messages[0]["role"] == "system"


@pytest.mark.parametrize("name", ["llama", "mistral", "mistral-args", "deepseek"])
def test_several_calls_of_a_turn(name: str, tmp_path: Path) -> None:
    tokenizer = tool_model(name, tmp_path)
    form = choose(tokenizer)
    assert form.template.several == (name != "llama")
    text = rendered(tokenizer, chat(form, [USER, *called("Rom", "Oslo"), USER], TOOLS, {}))
    order = ["Oslo", "sun abcdefgh0", "sun abcdefgh1"] if form.template.several else ["sun abcdefgh0", "Oslo", "sun abcdefgh1"]
    assert [text.count(each) for each in order] == [1, 1, 1]
    assert sorted(order, key=text.index) == order


def test_the_end_of_the_prompt_tells_whether_reasoning_has_begun(tmp_path: Path) -> None:
    for name, opened in (("deepseek", True), ("qwen", False), ("plain", False)):
        (tmp_path / name).mkdir()
        tokenizer = tool_model(name, tmp_path / name)
        assert choose(tokenizer).opens_reasoning(tokenizer.render([USER])) == opened
