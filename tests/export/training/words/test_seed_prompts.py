"""Seed prompts: repeatable, and of every kind."""

from __future__ import annotations

from itertools import islice

import pytest

from export.training.names import SHARES
from export.training.words.seed_prompts import (
    CODE_TASKS,
    TEXT_LENGTHS,
    TEXT_TASKS,
    library_functions,
    library_passages,
    seed_prompts,
    turn_beginnings,
)


def test_seed_prompts_are_repeatable_and_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = turn_beginnings()
    assert turns.keys() | {"library code", *TEXT_LENGTHS} == SHARES.keys()
    assert all(words.strip() and "\\n" not in words for kind in turns.values() for words in kind)
    code, passages = library_functions(300), {longest: library_passages(longest) for longest in TEXT_LENGTHS.values()}
    assert max(map(len, code)) <= 300
    for longest, texts in passages.items():
        assert longest / 3 < min(map(len, texts)) + 3 < max(map(len, texts)) <= longest
    monkeypatch.setattr("export.training.words.seed_prompts.library_functions", lambda longest: code)  # read once: it takes a second
    monkeypatch.setattr("export.training.words.seed_prompts.library_passages", passages.__getitem__)
    first, again, other = (list(islice(seed_prompts(seed), 400)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    pools = {kind: set(words) for kind, words in turns.items()}
    pools["library code"] = {form.format(each) for form in CODE_TASKS for each in code}
    pools |= {kind: {form.format(each) for form in TEXT_TASKS for each in passages[longest]} for kind, longest in TEXT_LENGTHS.items()}
    assert {each.kind for each in first} == SHARES.keys()
    assert all(each.text in pools[each.kind] and each.complete == (each.kind not in turns) for each in first)
    given = list(islice(seed_prompts(1, ["passage", "long text"], ["a text of mine", "another"]), 60))
    assert {each.kind for each in given} == {"passage", "long text"}
    mine = {form.format(each) for form in TEXT_TASKS for each in ("a text of mine", "another")}
    assert all(each.text in mine for each in given if each.kind == "long text")
