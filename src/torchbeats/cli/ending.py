"""How a command ends: its exit status, and that no end but our own fault's has a traceback.

| status | |
|---|---|
| 0 | all done |
| 1 | some inputs could not be read |
| 2 | nothing could be done |
| 130, 143 | stopped by Ctrl-C, by SIGTERM |
| 141 | whoever read the output has closed it, as `head` does |
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import typer

from torchbeats.cli.console import complain
from torchbeats.errors import DiskFullError, Stopped, TorchbeatsError
from torchbeats.files import is_full
from torchbeats.interrupts import as_exceptions

FAILED, PIPE_CLOSED = 2, 141

# The class of all errors of usage; newer Typers bring a copy of click's, older ones use click's own.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def stoppable(command: Callable[..., None], left: str) -> Callable[..., None]:
    """A command that a Ctrl-C or SIGTERM ends with one sentence.

    Args:
        command: a function.
        left: what the sentence says of the work that is done.
    """

    @functools.wraps(command)
    def stopped_or_done(*arguments: object, **options: object) -> None:
        try:
            with as_exceptions():
                command(*arguments, **options)
        except KeyboardInterrupt as stop:
            complain(left, "Stopped")
            raise typer.Exit(stop.status if isinstance(stop, Stopped) else 130) from None
        except BrokenPipeError:
            raise typer.Exit(PIPE_CLOSED) from None

    return stopped_or_done


def run(app: Callable[..., int | None]) -> int:
    """Run the command; its exit status."""
    try:
        try:
            status = _run(app)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        status = PIPE_CLOSED
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):  # of Rich's and click's own output, the help
            raise
        status = PIPE_CLOSED
    except OSError as error:
        if not is_full(error):
            raise
        with suppress(OSError):
            complain(f"There is no room for the output: {error.strerror}.")
        status = FAILED
    if status in (PIPE_CLOSED, FAILED):
        _drop_unwritten()
    return status


def _run(app: Callable[..., int | None]) -> int:
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:
        return 130
    except _UsageError as error:
        return _explain(error)
    except (TorchbeatsError, OSError) as error:  # what a user can mend; anything else is our fault, with its traceback
        if isinstance(error, BrokenPipeError):
            raise
        if is_full(error) and not isinstance(error, DiskFullError) and getattr(error, "filename", None) is None:
            raise  # of standard output
        complain(_sentence(error))
        return FAILED


def _sentence(error: Exception) -> str:
    """What an error says; of one of the system's, the file and the reason."""
    if isinstance(error, TorchbeatsError) or not (isinstance(error, OSError) and error.filename and error.strerror):
        return str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        above = next((above for above in Path(os.fsdecode(error.filename)).parents if above.is_file()), None)
        if above is not None:
            return f"{above} is a file, so that {os.fsdecode(error.filename)} cannot be below it."
    return f"{os.fsdecode(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}."


def _explain(error: Exception) -> int:
    """Say what is wrong with the command line as any other error is said; its words come from anywhere."""
    status = int(getattr(error, "exit_code", FAILED))
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        return status
    message = error.format_message().replace("Value error, ", "").rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    end = "" if message.endswith("?") else "."
    complain(message + end + (f" See {context.command_path} --help." if context else ""))
    return status


def _drop_unwritten() -> None:
    """Where an output cannot be written, Python is not to try again, and complain, as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
