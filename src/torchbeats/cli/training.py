"""What the commands that train share: how progress is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from torchbeats.cli.console import complain, console, has_viewer, remark
from torchbeats.files import printable
from torchbeats.training.listener import Listener
from torchbeats.training.processes import is_leader
from torchbeats.training.saving import TrainingStopped


@contextmanager
def stopping() -> Iterator[None]:
    """Around a training: one that is stopped ends the command with the status that schedulers expect of a signal."""
    try:
        yield
    except TrainingStopped as stop:
        if not is_leader():  # one process speaks for all, and a launcher need not end the rest
            raise typer.Exit(0) from None
        complain(str(stop), "Note")
        raise typer.Exit(128 + stop.signum) from None


class Display(Listener):
    """Shows progress on standard error, if that is a terminal."""

    def say(self, message: str) -> None:
        """Something good to know."""
        remark(message)

    def warn(self, message: str) -> None:
        """Something that is wrong, though the run goes on."""
        complain(message, "Warning")

    @contextmanager
    def work(self, name: str, total: float | None, unit: str) -> Iterator[Callable[[float, str], None]]:
        """A bar around a piece of work."""
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn(f"{{task.completed:,.0f}}{'' if total is None else ' of {task.total:,.0f}'} {unit}"),
            TimeRemainingColumn(),
            # What is left of the line: on a narrow terminal figures go, not the count.
            TextColumn("{task.fields[remark]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,
            disable=not has_viewer(),
        )
        with bar:
            task = bar.add_task(printable(name), total=total, remark="")

            def advance(more: float, remark: str) -> None:
                done = bar.tasks[task].completed + more
                bar.update(task, completed=done if total is None else min(done, total))  # the last piece may be longer
                if remark:
                    bar.update(task, remark=printable(remark))

            yield advance
