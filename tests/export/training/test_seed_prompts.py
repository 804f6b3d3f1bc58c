"""Seed prompts: repeatable, and of every kind."""

from __future__ import annotations

from itertools import islice

import pytest

from export.training.seed_prompts import (
    CODE_TASKS,
    SHARES,
    TEXT_TASKS,
    library_functions,
    library_passages,
    seed_prompts,
    turn_beginnings,
)


def test_seed_prompts_are_repeatable_and_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = turn_beginnings()
    assert turns.keys() | {"library code", "library text"} == SHARES.keys()
    assert all(words.strip() and "\\n" not in words for kind in turns.values() for words in kind)
    code, passages = library_functions(300), library_passages(300)
    assert max(map(len, code)) <= 300
    assert max(map(len, passages)) <= 300
    monkeypatch.setattr("export.training.seed_prompts.library_functions", lambda longest: code)  # read once: it takes a second
    monkeypatch.setattr("export.training.seed_prompts.library_passages", lambda longest: passages)
    first, again, other = (list(islice(seed_prompts(seed, 300), 400)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    pools = {kind: set(words) for kind, words in turns.items()}
    pools["library code"] = {form.format(each) for form in CODE_TASKS for each in code}
    pools["library text"] = {form.format(each) for form in TEXT_TASKS for each in passages}
    for kind, pool in pools.items():
        drawn = [each for each in first if each.text in pool]
        assert drawn, kind
        assert {each.complete for each in drawn} == {kind.startswith("library")}
    assert all(any(each.text in pool for pool in pools.values()) for each in first)
