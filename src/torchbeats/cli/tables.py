"""What the commands that make a table of sounds share: their options, and the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from torchbeats.cli.console import audio_progress, complain, remark, skipped
from torchbeats.data.lists import LIST_SUFFIXES
from torchbeats.inference import Progress
from torchbeats.plans import Plan
from torchbeats.tables.writing import write_table


class Engines(str, Enum):
    """What computes."""

    torch = "torch"
    onnx = "onnx"


NAMES = (
    "A name from `torchbeats models`, a checkpoint file, or owner/repo or owner/repo/file on the Hugging Face Hub, "
    "with @revision behind it if need be."
)
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help=f"Sound files; folders, searched with all below them; lists ({', '.join(LIST_SUFFIXES)}); - for paths on "
        "standard input.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The table: .parquet or .npz.")]


def _window(text: str | float) -> float | None:
    """Seconds, or None for "full"."""
    if text == "full":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number of seconds nor full.") from None


Window = Annotated[
    float | None,
    typer.Option(
        parser=_window,
        metavar="SECONDS|full",
        help="Seconds of audio that the model sees at once, or full for each sound as a whole. A rest of less than "
        "0.5 s joins the last window.",
    ),
]
Views = Annotated[
    int,
    typer.Option(
        min=1,
        help="For short sounds: hear each window so many times, a share of the model's step of 160 ms later each time, "
        "and take the mean.",
    ),
]
BatchSeconds = Annotated[float, typer.Option(help="Seconds of audio in a batch; less takes less memory.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …; auto takes a GPU if there is one.")]
Engine = Annotated[
    Engines | None,
    typer.Option(
        help="What computes: torch; or onnx, which is ONNX Runtime on the CPU. Default: onnx for an .onnx file from "
        "`torchbeats export`, else torch."
    ),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Threads that decode. Default: up to 4.")]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Search the folders as well that links in a folder lead to, each once.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]


def write(
    inputs: list[str],
    output: Path,
    model: str,
    plan: Plan,
    what: str,
    *,
    engine: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    follow_links: bool = False,
) -> None:
    """Write a table of ``what``, and say how it went; exit status 1 where sounds were left out."""

    @contextmanager
    def display(total: int, done: int) -> Iterator[Progress]:
        if done:
            remark(f"Going on behind sound {done:,} of {total:,}.")
        with audio_progress(total, done) as progress:
            yield progress

    result = write_table(
        inputs,
        output,
        model,
        plan,
        engine=engine,
        device=device,
        dtype=dtype,
        jobs=jobs,
        overwrite=overwrite,
        follow_links=follow_links,
        display=display,
        on_failure=skipped,
    )
    if result.complete:
        complain(f"{result.path} is complete already; there is nothing to do.", "Note")
    elif result.failures:
        good = result.sounds - result.failures
        listed = f"{result.errors} lists those that could not be read"
        complain(f"{result.path} has {good:,} of {result.sounds:,} files; {listed}.")
    else:
        remark(f"{result.path}: {what} of {result.sounds:,} files.")
    if result.failures:
        raise typer.Exit(1)
