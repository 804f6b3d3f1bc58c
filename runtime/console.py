"""How the commands begin and end: exit codes and one-line errors."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from .backends.cpu.processor import usable_cores
from .backends.ort_process import TELEMETRY_VARIABLE
from .errors import RespsError
from .standard_streams import drop_unwritable, prepare_streams, say

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
QUIET_SECONDS = 4.0  # between two lines about one stage


class EndedBySignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. What cleans up after Ctrl-C cleans up after them too."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """In the main thread SIGTERM and SIGHUP raise EndedBySignal. A signal that has a handler, or is ignored as SIGHUP under nohup, keeps
    that."""

    def on_signal(number: int, _: object) -> None:
        raise EndedBySignal(number)

    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for each in ours:
        signal.signal(each, on_signal)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None, extra: str = "cpu") -> int:
    """Run a click command and return its exit code: 0 ok, 1 failed, 2 usage, 3 engine directory, 129, 130 or 143 ended by a signal.

    An expected failure prints one line on stderr, ``name: what happened — what to do``; a traceback only with ``-vv``. ``extra``: the extra
    of this project that brings the packages which the command imports.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")  # the exporter and others import it without import_onnxruntime
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))  # numpy and torch count the host's cores, not the container's
    prepare_streams()
    try:
        # Not command.main(): it would turn a closed pipe into exit 1 before this function sees it.
        with _signals_raise(), command.make_context(name, arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
        return OK
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.UsageError as error:
        _complain(name, error.format_message(), f"see {error.ctx.command_path if error.ctx else name} --help")
        return USAGE
    except EndedBySignal as ended:
        _complain(name, f"ended by {ended.signal.name}")
        return 128 + ended.signal
    except (click.Abort, KeyboardInterrupt):
        _complain(name, "interrupted")
        return INTERRUPTED
    except RespsError as error:
        _trace_if_asked()
        _complain(name, str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        _trace_if_asked()
        _complain(name, f"{error.name} is not installed — pip install 'resps[{extra}]'")
        return FAILED
    except ImportError as error:
        _trace_if_asked()
        _complain(name, f"{error.name or 'a package'} cannot be imported: {error}", f"pip install --force-reinstall 'resps[{extra}]'")
        return FAILED
    except (OSError, MemoryError) as error:
        if drop_unwritable() and isinstance(error, BrokenPipeError):  # the reader had enough
            return OK
        _trace_if_asked()
        _complain(name, *_of_the_system(error))
        return FAILED
    except Exception as error:  # a defect of ours: still one line, and how to see more
        _trace_if_asked()
        _complain(name, f"internal error, {type(error).__name__}: {error}", "run again with -vv and report the traceback")
        return FAILED


def _of_the_system(error: OSError | MemoryError) -> tuple[str, str]:
    """What happened, and what to do about it."""
    if isinstance(error, MemoryError):
        return ": ".join(filter(None, ("there is not enough memory", str(error)))), "free some, and try again"
    what = ": ".join(filter(None, (str(error.filename or ""), error.strerror or str(error))))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return what, "free some space, and try again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return what, "check permissions, or choose another place"
    return what, "check the file or device" if error.filename else "try again; -vv shows where it happened"


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
        self._clock, self._stage, self._began, self._said, self._first = clock, "", 0.0, 0.0, 0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` equal parts of the stage are done. A stage that is first reported with 0 begins in silence. ``note`` says
        more about it."""
        now = self._clock()
        first = stage != self._stage
        if first:
            self._stage, self._began, self._said, self._first = stage, now, now, done
        note = note and f", {note}"
        if sys.stderr.isatty():
            say(f"\r\x1b[K{stage}: {done}/{total}{note}{self._left(now, done, total)}", nl=done == total)
        elif done == total:
            say(f"{stage}: done")
        elif first and done:
            say(f"{stage}: begins")
        elif now - self._said >= QUIET_SECONDS:
            self._said = now
            say(f"{stage}: {100 * done // total} %{note}{self._left(now, done, total)}")

    def _left(self, now: float, done: int, total: int) -> str:
        """The time left, once it can be told."""
        passed, parts = now - self._began, done - self._first
        return f", {_duration(passed * (total - done) / parts)} left" if parts > 0 and done < total and passed >= QUIET_SECONDS else ""


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
    say(f"{name}: {line}")
