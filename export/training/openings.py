"""How training conversations begin: an open user turn that the target itself continues, or a task about text of Python's own library.

Everything is ours or the Python Software Foundation's (PSF licence); no benchmark question is among it.
"""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics


@dataclass(frozen=True)
class Opening:
    """The start of a user turn; where ``open`` the target writes the rest of it."""

    text: str
    open: bool


SHARES = {"chat": 22, "instruct": 20, "question": 12, "maths": 13, "code": 12, "passage": 7, "library code": 9, "library text": 5}

OF_CODE = (
    "Complete the following function.\n\n{}",
    "Write the body of this Python function.\n\n{}",
    "Finish this code:\n\n{}",
    "```python\n{}\n```\nComplete the function above.",
    "{}",
)
OF_TEXT = (
    "Summarize the following text:\n\n{}",
    "Explain this in simple words.\n\n{}",
    "What are the main points of this passage?\n\n{}",
    "{}\n\nGive a short summary of the text above.",
    "Read the passage and write three questions about it.\n\n{}",
)


def openings(seed: int, longest: int) -> Iterator[Opening]:
    """An endless, repeatable stream; texts of the library have at most ``longest`` characters."""
    choice = random.Random(seed)
    seeds, code, text = open_turns(), library_functions(longest), library_passages(longest)
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        kind = choice.choices(kinds, shares)[0]
        if kind == "library code":
            yield Opening(choice.choice(OF_CODE).format(choice.choice(code)), open=False)
        elif kind == "library text":
            yield Opening(choice.choice(OF_TEXT).format(choice.choice(text)), open=False)
        else:
            yield Opening(choice.choice(seeds[kind]), open=True)


def open_turns() -> dict[str, list[str]]:
    """Kind -> how such a user turn may begin, from openings.tsv."""
    turns: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("openings.tsv").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, words = line.split("\t")
            turns.setdefault(kind, []).append(words.replace("\\n", "\n"))
    return turns


def library_functions(longest: int) -> list[str]:
    """Signature and docstring of every documented function of Python's library."""
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
    """Paragraphs of Python's language reference, joined up to ``longest`` characters."""
    found, text = [], ""
    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            if len(text) + len(paragraph) > longest:
                if len(text) > 200:
                    found.append(text.strip()[:longest])  # a single paragraph may be longer
                text = ""
            text += paragraph + "\n\n"
    return found
