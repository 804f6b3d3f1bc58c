"""Standard output and error of a command: closed ones, readers that had enough, encodings that lack a character."""

from __future__ import annotations

import codecs
import io
import json
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

import click


def prepare_streams() -> None:
    """Call it first. Afterwards all three numbers are taken, so that no file gets the number of a closed stream and then what is written
    to that; and a character that an encoding lacks becomes "?" instead of an error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def print_json(value: Any) -> None:
    """One line on standard output. Characters outside ASCII are escaped where the encoding might lack them."""
    with_all = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name == "utf-8"
    click.echo(json.dumps(value, ensure_ascii=not with_all))


def say(text: str, *, nl: bool = True) -> None:
    """Write to standard error. If nobody reads it any more the work goes on."""
    try:
        click.echo(text, err=True, nl=nl)
    except OSError:
        drop_unwritable()


def drop_unwritable() -> bool:
    """Point the streams that cannot be written to nowhere, so that nothing fails again when Python flushes them. Returns whether there was
    one."""
    broken = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in broken:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(broken)


def _is_broken(stream: TextIO) -> bool:
    try:
        stream.flush()  # may succeed although the flush before it failed
    except OSError:
        return True
    try:
        number = stream.fileno()
    except OSError:  # a stream in memory
        return False
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))
