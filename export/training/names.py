"""Names that the command offers and the training uses; imports nothing."""

from __future__ import annotations

SHARES = {
    "chat": 18,
    "instruct": 17,
    "question": 10,
    "maths": 12,
    "code": 10,
    "language": 5,
    "passage": 7,
    "library code": 8,
    "library text": 5,
    "long text": 8,
}
"""Kinds of text, and their percent of the conversations. A passage is written by the target; a language is not English."""

ACCEPTANCE = "acceptance"
LOSSES = ("soft", "hard", "top-k", ACCEPTANCE)
NORMS = ("eagle-3", "eagle-3.1")
