"""What people see: results on standard output; messages and progress on standard error, progress only for a person.

Names of files and labels come from anywhere, so all text goes through here: it is printed as it is, without the markup
of Rich, and without what a terminal would obey.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import rich.console
from rich.cells import cell_len
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from torchbeats.files import as_json, cache_folder, printable
from torchbeats.inference import Progress as OnBatch


class Console(rich.console.Console):
    """Prints text, and the cells of tables, as they are, but for control characters; `Text` is the caller's to clean.

    Args:
        **settings: of `rich.console.Console`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Text of which a terminal obeys nothing."""
        return super().render_str(printable(text), **settings)

    def on_broken_pipe(self) -> None:
        """Leave it to `main`, as for any other output."""
        raise BrokenPipeError


# A terminal gets whole words on each line; a log gets whole messages.
console = Console(stderr=True)
console.soft_wrap = not console.is_terminal

DAY = 86_400  # seconds
_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether to print results, warnings and errors only: no notes, no remarks, no progress."""
    global _quiet
    _quiet = quiet


def has_viewer() -> bool:
    """Whether a person looks on, who wants to see how it goes."""
    return console.is_terminal and not _quiet


_errors_only = False


def only_errors() -> None:
    """From now on say nothing but errors: of several processes that do the same, one speaks for all."""
    global _errors_only
    _errors_only = True


def complain(message: str, kind: str = "Error") -> None:
    """A warning or an error; or a note, unless the command is to be quiet."""
    if (kind == "Note" and _quiet) or (kind != "Error" and _errors_only):
        return
    style = "bold red" if kind == "Error" else "yellow"
    console.print(Text.assemble((f"{kind}: ", style), printable(message)))


def skipped(path: str, reason: str) -> None:
    """A sound that could not be read."""
    complain(f"{path}: {reason}.", "Skipped")


def files(count: int) -> str:
    """A number of files in words."""
    return f"{count:,} file{'s' * (count != 1)}"


def none_read(count: int) -> str:
    """What the sentence begins with that ends a command with nothing to show for it."""
    return "The file could not be read" if count == 1 else f"Not one of the {count:,} files could be read"


def remark(message: str, command: str = "") -> None:
    """Something good to know, for a person at a terminal.

    Args:
        message: a sentence.
        command: what could come next, on one line, so that it can be copied whole.
    """
    if has_viewer() and not _errors_only:
        console.print(message)
        if command:
            console.print(f"Try it: {command}", soft_wrap=True)


def remind(note: str) -> None:
    """A note that need not be read with every command: it is shown once a day."""
    stamp = cache_folder("notes") / hashlib.sha256(note.encode()).hexdigest()[:16]
    with suppress(OSError):  # a folder that cannot be read or written costs no more than a note again
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < DAY:
            return
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    complain(note, "Note")


def say(line: str, hanging: int = 2, flush: bool = False) -> None:
    """A line of a result on standard output; on a terminal, whole words on lines of which all but the first hang in.

    Args:
        line: without its end.
        hanging: spaces before the lines behind the first.
        flush: at once, where somebody may wait for it.
    """
    text = printable(line)
    print(whole_words(text, hanging) if sys.stdout.isatty() else text, flush=flush)


def room() -> int:
    """Characters in a line of the terminal that standard output is; 0: it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def whole_words(line: str, hanging: int) -> str:
    """A line as a terminal has room for it, broken between words; the lines behind the first are indented."""
    width = shutil.get_terminal_size().columns
    if cell_len(line) <= width:
        return line
    words = re.findall(r" *[^ ]+", line)  # a line's end stays with its last word
    lines = [words[0]]
    for word in words[1:]:
        if cell_len(lines[-1]) + cell_len(word) <= width:
            lines[-1] += word
        else:
            lines.append(" " * hanging + word.lstrip(" "))
    return "\n".join(lines)


def say_json(value: Any) -> None:
    """A result as JSON on standard output."""
    print(as_json(value, indent=1))


def for_terminal(text: str) -> str:
    """Lines of a file's format as a terminal may have them."""
    return "\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text


class Bar(Progress):
    """A bar of which nothing is seen where it is disabled: Rich before 15 ends it with an empty line there."""

    def stop(self) -> None:
        """End it."""
        if not self.disable:
            super().stop()


@contextmanager
def working(doing: str = "") -> Iterator[Any]:
    """A sign that something is going on, for a person; called with a text, it says what."""
    if not has_viewer():
        yield lambda doing: None
        return
    with console.status(Text(printable(doing))) as status:
        yield lambda doing: status.update(Text(printable(doing)))


@contextmanager
def audio_progress(total: int | Callable[[], int | None], done: int) -> Iterator[OnBatch]:
    """A bar with files, hours of audio and speed while sounds are worked on.

    Args:
        total: number of inputs, or what tells it as soon as it is known.
        done: how many of them an earlier run has finished.
    """
    bar = Bar(
        BarColumn(),
        TextColumn("{task.completed:,.0f} {task.fields[of]}"),
        TextColumn("{task.fields[audio]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not has_viewer(),
    )
    seconds = 0.0
    with bar:
        number = total() if callable(total) else total
        task = bar.add_task("", total=number, completed=done, audio="", of=_of(number))

        def on_batch(more: float, inputs: float) -> None:
            nonlocal seconds
            seconds += more
            number = total() if callable(total) else total
            speed = seconds / (bar.tasks[0].elapsed or 1.0)
            audio = f"{seconds / 3600:.2f} h of audio, {speed:,.1f} × real time"
            bar.update(task, total=number, advance=inputs, audio=audio, of=_of(number))

        yield on_batch


def _of(total: int | None) -> str:
    return "files" if total is None else f"of {files(total)}"


@contextmanager
def count_progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar with a count and the time to go while equal pieces of work are done.

    Args:
        total: number of pieces.
        what: they are, in the plural.

    Yields:
        What is to be called behind each piece.
    """
    bar = Bar(
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {what}"),
        TimeRemainingColumn(),
        console=console,
        disable=not has_viewer(),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
