"""Keys are read from files and the environment, and never shown; limits fill up again."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runtime.serve.errors import ApiError, ServeError
from runtime.serve.protection.keys import ANYONE, VARIABLE, Key, load_keys
from runtime.serve.protection.limits import Limits
from runtime.serve.protection.refusal import refuse
from runtime.serve.protection.suspects import FORGET_SECONDS, MOST, Suspects


def bearer(key: str, scheme: str = "Bearer") -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", f"{scheme} {key}".encode())]


def test_keys_have_names_limits_and_no_clear_text(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    digest = sha256(b"second-key").hexdigest()
    file.write_text(f'[alice]\nkey = "first-key"\nrequests_per_minute = 3\nlanes = 2\n[bob]\nsha256 = "{digest}"\nadmin = true\n')
    keys = load_keys(file, {VARIABLE: "carol=third-key, fourth-key"})
    found = {given: keys.find(bearer(given)) for given in ("first-key", "second-key", "third-key", "fourth-key", "fifth-key", "")}
    assert {given: each and each.name for given, each in found.items()} == {
        "first-key": "alice", "second-key": "bob", "third-key": "carol", "fourth-key": "key2", "fifth-key": None, "": None,
    }  # fmt: skip
    alice, bob = keys.keys[:2]
    assert (alice.requests_per_minute, alice.tokens_per_minute, alice.lanes, alice.admin, bob.admin) == (3, None, 2, False, True)
    assert "first-key" not in repr(keys)
    assert keys.find(bearer("first-key", "Basic")) is None
    assert keys.find([]) is None
    assert load_keys(None, {}).find([]) is ANYONE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a]\nkey = 'secret-1'\n[b]\nkey = 'secret-1'", "the same key"),
        ("[a]\nkey = 'secret'", "8 or more ASCII"),
        ("[a]\nkey = 'sécret-123'", "8 or more ASCII"),
        ("[a]\nkey = 'secret-1'\nlane = 2", "lane, which is unknown"),
        ("[a]\nkey = 'secret-1'\nlanes = 0", "lanes of a"),
        ("[a]\nkey = 'secret-1'\nlanes = true", "lanes of a"),
        ("[a]\nkey = 'secret-1'\nadmin = 1", "admin of a"),
        ("[a]\nlanes = 2", "either key or sha256"),
        ("[a]\nsha256 = 'secret-1'", "64 hexadecimal"),
        ("a = 'secret-1'", "either key or sha256"),
        ("['a b']\nkey = 'secret-1'", "other characters"),
        ("[a]\nkey = secret-1", "not TOML"),
        ("", "no API key"),
    ],
)
def test_a_wrong_file_is_refused_without_quoting_a_key(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ServeError, match=told) as refused:
        load_keys(file, {})
    assert "secret" not in str(refused.value)
    assert "cret-123" not in str(refused.value)


def test_an_unreadable_file_and_a_doubled_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="No such file"):
        load_keys(tmp_path / "none", {})
    with pytest.raises(ServeError, match="the same name"):
        load_keys(None, {VARIABLE: "a=first-key,a=second-key"})


def refused(limits: Limits, key: Key) -> str | None:
    """Retry-After of a refusal, or None."""
    try:
        limits.count_request(key)
    except ApiError as refusal:
        error = refusal
    else:
        return None
    assert (error.status, error.code, error.body["error"]["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    return error.headers["Retry-After"]


def test_requests_and_tokens_a_minute_fill_up_again() -> None:
    now = [0.0]
    limits = Limits(lambda: now[0])
    one, other = Key("one", b"1", requests_per_minute=2, tokens_per_minute=60), Key("other", b"2", requests_per_minute=1)
    assert [refused(limits, one) for _ in range(3)] == [None, None, "30"]
    assert refused(limits, other) is None  # a key uses its own limit only
    now[0] = 30.0
    assert [refused(limits, one), refused(limits, one)] == [None, "30"]
    now[0] = 1000.0
    limits.count_tokens(one, 90)  # known only after the answer
    assert refused(limits, one) == "31"
    now[0] = 1031.0
    assert [refused(limits, one) for _ in range(3)] == [None, None, "30"]  # not more than a minute's worth, however long it waited
    assert refused(limits, ANYONE) is None


def test_a_body_that_an_engine_failed_at_twice_is_refused_for_an_hour() -> None:
    now = [0.0]
    suspects = Suspects(lambda: now[0])
    suspects.failed(b"bad", 0.0)
    suspects.failed(b"beside", 0.0)
    suspects.expect_innocent(b"bad")
    now[0] = 2.0
    suspects.failed(b"bad", 1.0)
    with pytest.raises(ApiError, match="failed at this request 2 times") as error:
        suspects.expect_innocent(b"bad")
    assert (error.value.status, error.value.code) == (400, "repeated_engine_failure")
    suspects.succeeded(b"beside")
    suspects.failed(b"beside", 1.0)
    suspects.expect_innocent(b"beside")
    now[0] = 2.0 + FORGET_SECONDS
    suspects.expect_innocent(b"bad")


def test_suspects_take_bounded_memory() -> None:
    suspects = Suspects()
    for at in range(MOST + 10):
        suspects.failed(str(at).encode(), 0.0)
    assert len(suspects._failures) == MOST


def test_answers_that_failed_side_by_side_count_once() -> None:
    now = [5.0]
    suspects = Suspects(lambda: now[0])
    for _ in range(3):
        suspects.failed(b"twins", 4.0)
        now[0] += 0.1
    suspects.expect_innocent(b"twins")
    suspects.failed(b"twins", 6.0)
    with pytest.raises(ApiError, match="failed at this request 2 times"):
        suspects.expect_innocent(b"twins")


def test_a_request_is_refused_where_nobody_counts_refusals() -> None:
    """The front of Ray has no metrics."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "app": SimpleNamespace(state=SimpleNamespace(services=SimpleNamespace(limits=Limits())))}
    asyncio.run(refuse(ApiError(401, "no key", code="invalid_api_key"), scope, cast(Any, None), send))
    assert sent[0]["status"] == 401
