"""scripts/lab/count_repeats.py: which tokens lookups would have got right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.training.words.corpus import Conversation, ShardWriter
from export.training.words.segments import ANSWER, PROMPT
from policy.lookup import MATCH_CLASSES
from runtime.console import run_command
from scripts.lab.count_repeats import LookupCount, count, main


def counted(tokens: list[int], written: list[bool] | None = None) -> tuple[int, dict[int, LookupCount]]:
    counts = {least: LookupCount() for least in MATCH_CLASSES}
    positions = count(tokens, written or [True] * len(tokens), counts)
    return positions, {least: result for least, result in counts.items() if result.positions}


def test_lookups_in_repeated_text_are_right() -> None:
    positions, counts = counted([5, 6, 7] * 4)
    assert positions == 11
    assert {least: result.positions for least, result in counts.items()} == {2: 1, 3: 1, 4: 2, 6: 3}
    assert all((result.first_rate, result.later_rate) == (1.0, 1.0) for result in counts.values())
    assert counts[2].accepted == 7  # five tokens were read; seven were to come
    assert counts[6].accepted == 3 + 2 + 1


def test_first_wrong_token_ends_a_lookup() -> None:
    positions, counts = counted([1, 2, 3, 4, 5, 9, 9, 8, 1, 2, 3, 4, 6, 7, 1, 2, 5, 5])
    assert positions == 17
    assert counts[2] == LookupCount(positions=2, first_right=1, accepted=2, later_tries=2)  # 3, 4 and not 5; then not 3
    assert (counts[2].first_rate, counts[2].later_rate) == (0.5, 0.5)
    assert counts[3] == LookupCount(positions=1, first_right=1, accepted=1, later_tries=1)
    assert counts[4] == LookupCount(positions=1)
    assert (counts[4].first_rate, counts[4].later_rate) == (0.0, 0.0)


def test_only_positions_inside_answers_count() -> None:
    tokens = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    positions, counts = counted(tokens, [False] * 6 + [True] * 3)
    assert positions == 2
    assert sum(result.positions for result in counts.values()) == 2
    assert counted(tokens, [False] * 9) == (0, {})


def test_shards_and_answers_give_the_table(tmp_path: Path, tiny_engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokens, kinds = np.array([3, 4, 5] * 5, np.int32), np.array([PROMPT] * 3 + [ANSWER] * 12, np.uint8)
    writer = ShardWriter(tmp_path / "data", "words-000")
    for _ in range(2):
        writer.add(Conversation(tokens, kinds, "chat"))
    writer.flush()
    capfd.readouterr()
    assert run_command(main, "count_repeats", [str(tmp_path / "data")]) == 0
    out, err = capfd.readouterr()
    assert (out.splitlines()[0], err) == ("22 places", "")
    assert "| 2 | 9 % | 1.00 | 1.00 | 8.0 |" in out
    assert [line.split("|")[1].strip() for line in out.splitlines()[4:]] == [
        "2",
        "3",
        "4 to 5",
        "6 to 8",
        "9 to 12",
        "13 to 19",
        "20 and more",
    ]

    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"prompt": "a dog", "answer": "the cat sat on the mat, the cat sat on the mat"}) + "\n")
    assert run_command(main, "count_repeats", ["--engine-dir", str(tiny_engine), str(file)]) == 0
    assert int(capfd.readouterr().out.split()[0]) > 10


def test_unusable_files_are_one_line_errors(tmp_path: Path, tiny_engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    cases = [
        ([str(tmp_path)], "holds no shards — make some"),
        ([str(tmp_path / "bad.jsonl")], "is text: --engine-dir says how it is cut"),
        (["--engine-dir", str(tiny_engine), str(tmp_path / "bad.jsonl")], "line 1 has no prompt and answer"),
    ]
    capfd.readouterr()
    for arguments, message in cases:
        assert run_command(main, "count_repeats", arguments) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert message in err
