"""How the commands begin and end: exit codes, one-line errors, closed pipes."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from .errors import RespsError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
QUIET_SECONDS = 4.0  # between two lines about one stage


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None, extra: str = "cpu") -> int:
    """Run a click command and return its exit code: 0 ok, 1 failed, 2 usage, 3 engine directory, 130 interrupted.

    An expected failure prints one line on stderr, ``name: what happened — what to do``; a traceback only with ``-vv``. ``extra``: the extra
    of this project that brings the packages which the command imports.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Official builds of ONNX Runtime send usage data to Microsoft and keep files for it at home, unless this is set before they start.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        # Not command.main(): it would turn a closed pipe into exit 1 before this function sees it.
        with command.make_context(name, arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
        return OK
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.UsageError as error:
        _complain(name, error.format_message(), f"see {error.ctx.command_path if error.ctx else name} --help")
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        _complain(name, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except RespsError as error:
        _trace_if_asked()
        _complain(name, str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        _trace_if_asked()
        _complain(name, f"{error.name} is not installed — pip install 'resps[{extra}]'")
        return FAILED
    except (OSError, MemoryError) as error:
        _trace_if_asked()
        _complain(name, f"{type(error).__name__}: {error}", "free some space or memory, check permissions, and try again")
        return FAILED
    except Exception as error:  # a defect of ours: still one line, and how to see more
        _trace_if_asked()
        _complain(name, f"internal error, {type(error).__name__}: {error}", "run again with -vv and report the traceback")
        return FAILED


@contextmanager
def usage_errors() -> Iterator[None]:
    """Around what is made of the options: a value that cannot be, or that does not go with another, is wrong usage (UsageError) and no
    defect. Errors with an exit code of their own keep it."""
    try:
        yield
    except RespsError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from None


class Progress:
    """Reports long work on stderr. On a terminal one line overwrites itself. Elsewhere there is a line when a stage begins, one when it
    ends, and in between one every QUIET_SECONDS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._stage, self._began, self._said = clock, "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` equal parts of the stage are done. A stage that is first reported with 0 begins in silence."""
        now = self._clock()
        first = stage != self._stage
        if first:
            self._stage, self._began, self._said = stage, now, now
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{stage}: {done}/{total}{self._left(now, done, total)}", err=True, nl=done == total)
        elif done == total:
            click.echo(f"{stage}: done", err=True)
        elif first and done:
            click.echo(f"{stage}: begins", err=True)
        elif now - self._said >= QUIET_SECONDS:
            self._said = now
            click.echo(f"{stage}: {100 * done // total} %{self._left(now, done, total)}", err=True)

    def _left(self, now: float, done: int, total: int) -> str:
        """The time left, once it can be told."""
        passed = now - self._began
        return f", {_duration(passed * (total - done) / done)} left" if 0 < done < total and passed >= QUIET_SECONDS else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


progress = Progress()


def set_verbosity(level: int) -> None:
    """-v: what is done; -vv: tracebacks too."""
    logging.basicConfig(level=[logging.WARNING, logging.INFO, logging.DEBUG][min(level, 2)], format="%(name)s: %(message)s")


def _trace_if_asked() -> None:
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("resps").debug("traceback", exc_info=True)


def _complain(name: str, *parts: str) -> None:
    line = " — ".join(" ".join(part.split()) for part in parts)
    click.echo(f"{name}: {line}", err=True)
