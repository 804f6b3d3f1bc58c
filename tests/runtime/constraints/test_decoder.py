"""Constraints on real engines: trees, policies and neighbours change nothing, and every answer has its form."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy import FixedPolicy, Policy, TreeSpec
from runtime import Constraint, Decoder, Result, SamplingParams
from tests.support.constraints import schemas, valid
from tests.support.plain_sampling import any_rules

PROMPT = list(range(5, 40))
POLICIES: list[Policy | str | None] = [None, "fixed", FixedPolicy(TreeSpec(12, 4, 3)), "none"]
SCHEMAS = list(schemas(3, 6))
FORMS = [*map(Constraint.json_schema, SCHEMAS), Constraint.regex("[a-f]{3,40}"), Constraint.choice(["one", "two and three"])]


@pytest.fixture(scope="module", params=[1, 3], ids=["one lane", "three lanes"])
def any_lanes(echo_engine: Path, request: pytest.FixtureRequest) -> Iterator[Decoder]:
    with Decoder(echo_engine, threads=1, lanes=request.param) as decoder:
        yield decoder


def wanted() -> list[SamplingParams]:
    random = np.random.default_rng(11)
    made = [any_rules(random, 96, 120) if at % 3 else SamplingParams(max_new_tokens=120) for at in range(len(FORMS) * 2)]
    return [replace(each, bad_words=(), min_tokens=0, constraint=FORMS[at % len(FORMS)]) for at, each in enumerate(made)]


@pytest.fixture(scope="module")
def plain(echo_engine: Path) -> list[Result]:
    with Decoder(echo_engine, threads=1) as decoder:
        return [decoder.generate(PROMPT, params, policy="none") for params in wanted()]


def test_trees_and_neighbours_change_nothing(any_lanes: Decoder, plain: list[Result]) -> None:
    params = wanted()
    with ThreadPoolExecutor(any_lanes.lanes) as pool:
        results = list(pool.map(lambda at: any_lanes.generate(PROMPT, params[at], policy=POLICIES[at % 4]), range(len(params))))
    for result, expected in zip(results, plain, strict=True):
        assert (result.tokens, result.text, result.stop) == (expected.tokens, expected.text, expected.stop)
    assert sum(result.stats.accepted for result in results) > 100


def test_every_complete_answer_has_its_form(plain: list[Result]) -> None:
    complete = 0
    for at, result in enumerate(plain):
        if result.stop == "eos" and at % len(FORMS) < len(SCHEMAS):
            assert valid(result.text, SCHEMAS[at % len(FORMS)])
            complete += 1
    assert complete > 4


def test_forced_tokens_need_no_draft(any_lanes: Decoder) -> None:
    keys = [f"a long key number {at}" for at in range(3)]
    schema = {"type": "object", "properties": {key: {"type": "boolean"} for key in keys}, "required": keys, "additionalProperties": False}
    params = SamplingParams(max_new_tokens=200, constraint=Constraint.json_schema(schema))
    slow, fast = (any_lanes.generate(PROMPT, params, policy=policy) for policy in ("none", FixedPolicy(TreeSpec(2, 1, 1))))
    assert valid(fast.text, schema)
    assert (fast.tokens, slow.stats.drafted) == (slow.tokens, 0)
    assert fast.stats.cycles < slow.stats.cycles / 2
    assert fast.stats.accepted > 0.5 * fast.stats.drafted


def test_a_fork_shares_what_is_compiled(echo_engine: Path) -> None:
    with Decoder(echo_engine, threads=1) as first, first.fork() as second:
        assert first._engine.grammars is second._engine.grammars
