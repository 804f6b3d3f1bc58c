"""API keys: read from a file or the environment, kept as hashes, compared in constant time."""

from __future__ import annotations

import hmac
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..errors import ServeError

VARIABLE = "RESPS_API_KEYS"
LEAST_LENGTH = 8  # of a key in clear text; anything shorter can be guessed
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "lanes")


@dataclass(frozen=True)
class Key:
    """Who asks. ``name``: for the log; ``digest``: SHA-256 of the key. ``tokens_per_minute``: of prompts and answers. ``lanes``: how many
    requests may run at once; more wait. None is no limit. ``admin``: may also reload the tuning."""

    name: str
    digest: bytes
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    lanes: int | None = None
    admin: bool = False


ANYONE = Key("", b"", admin=True)
"""Who asks where the server has no keys."""


@dataclass(frozen=True)
class Keys:
    """The keys of one server; none means that anyone may ask."""

    keys: tuple[Key, ...] = ()

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
        """The key of ``Authorization: Bearer KEY``, ANYONE where there are no keys, else None. It takes as long for a wrong key as for a
        right one."""
        if not self.keys:
            return ANYONE
        scheme, _, given = next((value for name, value in headers if name == b"authorization"), b"").partition(b" ")
        digest, found = sha256(given.strip()).digest(), None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found if scheme.lower() == b"bearer" else None


NO_KEYS = Keys()


def load_keys(file: Path | None, environment: Mapping[str, str]) -> Keys:
    """The keys of ``file`` and of the variable RESPS_API_KEYS. Raises ServeError if one of them cannot be read, and never quotes a key."""
    keys = [*(_of_file(file) if file else ()), *_of_variable(environment.get(VARIABLE, ""))]
    for what, given in (("name", [key.name for key in keys]), ("key", [key.digest for key in keys])):
        if len(set(given)) < len(given):
            raise ServeError(f"two API keys have the same {what} — give each its own")
    return Keys(tuple(keys))


def _of_variable(text: str) -> list[Key]:
    """``NAME=KEY,NAME=KEY``; a key without a name is called key1, key2, ..."""
    keys = []
    for at, entry in enumerate(filter(None, (each.strip() for each in text.split(","))), 1):
        name, equals, clear = entry.partition("=")
        keys.append(_key(name if equals else f"key{at}", {"key": clear if equals else entry}, VARIABLE))
    return keys


def _of_file(file: Path) -> Sequence[Key]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # the parser's message would quote the line
        reason = getattr(error, "strerror", None) or "it is not TOML"
        raise ServeError(f'cannot read the API keys in {file}: {reason} — a table for each, such as [alice] and key = "..."') from None
    if not tables:
        raise ServeError(f"{file} holds no API key — add one, or leave --api-key-file out")
    return [_key(name, table, str(file)) for name, table in tables.items()]


def _key(name: str, table: object, place: str) -> Key:
    if not _NAME.fullmatch(name):
        raise ServeError(f"{place}: the name of an API key has other characters than letters, digits and ._@- — rename it")
    if not isinstance(table, Mapping) or ("key" in table) == ("sha256" in table):
        raise ServeError(f"{place}: {name} needs either key or sha256 — give one of them")
    unknown = sorted(set(table) - {"key", "sha256", "admin", *_LIMITS})
    if unknown:
        raise ServeError(f"{place}: {name} has {unknown[0][:40]}, which is unknown — use {', '.join(_LIMITS)} or admin")
    clear, hashed = table.get("key"), table.get("sha256")
    if clear is not None and (not isinstance(clear, str) or len(clear) < LEAST_LENGTH or not clear.isascii() or clear != clear.strip()):
        raise ServeError(f"{place}: the key of {name} is not {LEAST_LENGTH} or more ASCII characters — make one: openssl rand -hex 32")
    if hashed is not None and (not isinstance(hashed, str) or not _HASH.fullmatch(hashed)):
        raise ServeError(f"{place}: the sha256 of {name} is not 64 hexadecimal digits — printf %s KEY | sha256sum")
    for limit in _LIMITS:
        value = table.get(limit, 1)
        if type(value) is not int or value < 1:
            raise ServeError(f"{place}: {limit} of {name} is not a whole number from 1 — correct it, or leave it out for no limit")
    if type(table.get("admin", False)) is not bool:
        raise ServeError(f"{place}: admin of {name} is neither true nor false — correct it")
    digest = bytes.fromhex(hashed) if hashed else sha256(str(clear).encode()).digest()
    requests, tokens, lanes = (table.get(limit) for limit in _LIMITS)
    return Key(name, digest, requests, tokens, lanes, table.get("admin", False))
