"""What people see beside the results: messages and progress on standard error, progress only where somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from torchbeats.inference import Progress as OnBatch

console = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(message: str, kind: str = "Error") -> None:
    """A warning or an error."""
    console.print(Text.assemble((f"{kind}: ", "bold red" if kind == "Error" else "yellow"), message))


def skipped(path: str, reason: str) -> None:
    """A sound that could not be read."""
    complain(f"{path}: {reason}.", "Skipped")


def remark(message: str) -> None:
    """Something good to know, for a person at a terminal."""
    if console.is_terminal:
        console.print(message, markup=False)


@contextmanager
def audio_progress(total: int, done: int) -> Iterator[OnBatch]:
    """A bar with files, hours of audio and speed while sounds are worked on.

    Args:
        total: number of inputs.
        done: how many of them an earlier run has finished.
    """
    bar = Progress(
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} files"),
        TextColumn("{task.fields[audio]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    seconds = 0.0
    with bar:
        task = bar.add_task("", total=total, completed=done, audio="")

        def on_batch(more: float, inputs: float) -> None:
            nonlocal seconds
            seconds += more
            speed = seconds / (bar.tasks[0].elapsed or 1.0)
            bar.update(task, advance=inputs, audio=f"{seconds / 3600:.2f} h of audio, {speed:,.1f} × real time")

        yield on_batch
