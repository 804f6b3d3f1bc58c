"""One run of resps-bench --doctor, from the command's options to what it prints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime import Decoder
from runtime.backends.cpu.processor import usable_cores
from runtime.bench.measure import prompt_of
from runtime.bench.questions import read_questions
from runtime.console import progress
from runtime.errors import BenchError
from runtime.manifest.load import find_engine_dir
from runtime.manifest.schema import Manifest
from runtime.text.template import ChatTemplate

from .diagnosis import Finding, Level, diagnose, levels
from .evidence import Answer, collect
from .pair import open_pair
from .streams import Streams, target_streams
from .template import OtherTemplate, other_template


@dataclass(frozen=True)
class Examination:
    """What the doctor saw. ``answers``: how many there were; 0 if they were too short to judge the draft by."""

    manifest: Manifest
    answers: int
    levels: Sequence[Level]
    findings: Sequence[Finding]

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "model": self.manifest.model,
            "precision": self.manifest.precision,
            "draft": self.manifest.draft.name if self.manifest.draft else None,
            "answers": self.answers,
            "levels": [asdict(level) for level in self.levels],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def lines(self) -> list[str]:
        """As text."""
        draft = self.manifest.draft
        assert draft is not None
        lines = [f"{self.manifest.model} in {self.manifest.precision}, draft {draft.name} in {draft.precision}: {self.answers} answers"]
        for number, level in enumerate(self.levels, 1):
            lines.append(
                f"guess {number} is right at {level.share:.2f} ({level.low:.2f} to {level.high:.2f}) of {level.positions} positions"
            )
        return [*lines, *map(str, self.findings)] if self.findings else [*lines, "nothing found"]


def examined(given: Mapping[str, Any], files: Sequence[Path], new_tokens: int) -> Examination:
    """Examine an engine directory and its draft. ``given``: the command's options. Raises BenchError for another draft than EAGLE-3's
    and on a GPU, EngineDirError, and CheckpointError if the checkpoints cannot be found."""
    questions = read_questions(files, given["questions"])
    directory = find_engine_dir(given["engine_dir"])
    threads = given["threads"] or usable_cores()
    with Decoder(directory, policy="fixed", draft="eagle", backend=given["backend"], device=given["device"], threads=threads) as decoder:
        if decoder.device != "cpu":
            raise BenchError("the doctor reads what the target captured, in host memory — export the pair for the CPU to examine it")
        if decoder.manifest.draft and decoder.manifest.draft.one_pass:
            raise BenchError("the doctor examines EAGLE-3 drafts — measure this one with resps-bench")
        pair = open_pair(decoder.manifest, given["weights"], given["draft_weights"])
        asked = [question.turns[0] for question in questions]
        prompts = [decoder.encode(prompt_of(decoder, [{"role": "user", "content": text}])) for text in asked]
        found = list[Finding]()
        other = other_template(decoder.tokenizer, pair.text.templates, decoder.manifest.tokens.special.values())
        try:
            answers = collect(decoder, prompts, new_tokens, progress)
        except BenchError:  # with a wrong template a model may say next to nothing
            if other is None:
                raise
            answers = []
        if other:
            found.append(_template_finding(decoder, other, asked, answers, new_tokens))

    def compute(wanted: Collection[int]) -> Streams:
        return target_streams(pair.target, [answer.tokens for answer in answers], wanted, progress)

    if answers:
        found += diagnose(pair.draft, answers, compute)
    return Examination(decoder.manifest, len(answers), levels(answers), found)


def _template_finding(decoder: Decoder, other: OtherTemplate, asked: Sequence[str], answers: Sequence[Answer], new_tokens: int) -> Finding:
    template, special = ChatTemplate(other.source), decoder.manifest.tokens.special
    texts = [template.render([{"role": "user", "content": text}], special) for text in asked]
    try:
        again = collect(decoder, [decoder.tokenizer.encode_rendered(text) for text in texts], new_tokens, progress)
    except BenchError:
        again = []
    return Finding(
        other.why,
        f"with it {_first_guess(answers)}; with the model's {_first_guess(again)}",
        "export from the checkpoint with the chat template that the model was trained with",
    )


def _first_guess(answers: Sequence[Answer]) -> str:
    return f"guess 1 is right at {levels(answers)[0].share:.2f}" if answers else "the answers are too short to tell"
