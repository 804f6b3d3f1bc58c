"""Seed prompts of training conversations: first words of a user turn, which the target completes, or a task on text of Python's library.

All text is ours or the Python Software Foundation's (PSF licence). It contains no benchmark question.
"""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from ..names import SHARES


@dataclass(frozen=True)
class SeedPrompt:
    """The beginning of a user turn. ``kind``: of text. ``complete``: it is the whole turn; otherwise the target writes the rest."""

    kind: str
    text: str
    complete: bool


LONG_TEXT = "long text"
TEXT_LENGTHS = {"library text": 600, LONG_TEXT: 3000}
"""Most characters of a text of the library."""

CODE_TASKS = (
    "Complete the following function.\n\n{}",
    "Write the body of this Python function.\n\n{}",
    "Finish this code:\n\n{}",
    "```python\n{}\n```\nComplete the function above.",
    "{}",
)
TEXT_TASKS = (
    "Summarize the following text:\n\n{}",
    "Explain this in simple words.\n\n{}",
    "What are the main points of this passage?\n\n{}",
    "{}\n\nGive a short summary of the text above.",
    "Read the passage and write three questions about it.\n\n{}",
)


def seed_prompts(seed: int, kinds: Sequence[str] = (), long_texts: Sequence[str] = ()) -> Iterator[SeedPrompt]:
    """An endless stream, the same for the same ``seed``. ``kinds``: those of SHARES that are wanted [default: all]. ``long_texts``: taken
    for that kind [default: passages of Python's language reference]."""
    choice, wanted = random.Random(seed), list(kinds or SHARES)
    beginnings, shares = turn_beginnings(), [SHARES[kind] for kind in wanted]
    code = library_functions(600) if "library code" in wanted else []
    texts = {kind: library_passages(longest) for kind, longest in TEXT_LENGTHS.items() if kind in wanted}
    if long_texts and LONG_TEXT in texts:
        texts[LONG_TEXT] = list(long_texts)
    while True:
        kind = choice.choices(wanted, shares)[0]
        if kind == "library code":
            yield SeedPrompt(kind, choice.choice(CODE_TASKS).format(choice.choice(code)), complete=True)
        elif kind in texts:
            yield SeedPrompt(kind, choice.choice(TEXT_TASKS).format(choice.choice(texts[kind])), complete=True)
        else:
            yield SeedPrompt(kind, choice.choice(beginnings[kind]), complete=False)


def turn_beginnings() -> dict[str, list[str]]:
    """Kind -> first words of such user turns, from seed_prompts.tsv."""
    turns: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("seed_prompts.tsv").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, words = line.split("\t")
            turns.setdefault(kind, []).append(words.replace("\\n", "\n"))
    return turns


def library_functions(longest: int) -> list[str]:
    """Signature and docstring of every documented function of Python's library, at most ``longest`` characters."""
    found = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = file.read_text(encoding="utf-8", errors="replace")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)) and not node.name.startswith("_"):
                head = f'def {node.name}({ast.unparse(node.args)}):\n    """{inspect.cleandoc(doc)}\n    """\n'.replace("\n    \n", "\n\n")
                if len(head) <= longest:
                    found.append(head)
    return found


def library_passages(longest: int) -> list[str]:
    """Paragraphs of Python's language reference, joined up to ``longest`` characters; none shorter than a third of that."""
    found, text = [], ""
    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            if len(text) + len(paragraph) > longest:
                if len(text) > longest / 3:
                    found.append(text.strip()[:longest])  # a single paragraph may be longer
                text = ""
            text += paragraph + "\n\n"
    return found
