"""What the commands that make a table of sounds share: their options, and the run itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from torchbeats.cli.console import audio_progress, complain, files, none_read, remark, remind, skipped
from torchbeats.data.list_formats.formats import LIST_SUFFIXES
from torchbeats.distributed.cluster import ADDRESSES, AUTO
from torchbeats.distributed.running import write_table_on_ray
from torchbeats.errors import SettingsError
from torchbeats.inference import Progress
from torchbeats.plans import Plan
from torchbeats.tables.writing import write_table
from torchbeats.weights import hub


class Engines(str, Enum):
    """What computes."""

    torch = "torch"
    onnx = "onnx"
    openvino = "openvino"


# How the options of a command are grouped in its help.
OUTPUT = "Output"
MODEL = "Model"
WINDOWS = "Windows"
COMPUTING = "Computing"
HELD_OUT = "Held-out sounds"
TRAINING = "Training"

NAMES = (
    "A name from `torchbeats models`; a checkpoint file; or owner/repo or owner/repo/file on the Hugging Face Hub, "
    "optionally with @revision."
)
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help=f"Sound files; folders, searched with all their subfolders; lists ({', '.join(LIST_SUFFIXES)}); URLs of "
        "files, folders or patterns (s3://bucket/sounds/*.wav, hf://, https://, zip://); WebDataset shards (.tar, by "
        "path or URL); or - to read paths from standard input.",
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        rich_help_panel=OUTPUT,
        help="Table to write: .parquet, .npz or .lance. With --ray a folder named .parquet, or .lance; or its URL.",
    ),
]


def or_built_in(model: str | None, built_in: str = hub.BUILT_IN, note: str = hub.BUILT_IN_NOTE) -> str:
    """The model that is named, or else the built-in one, of which a note tells."""
    if model is None:
        remind(note)
    return model or built_in


def _window(text: str | float) -> float | None:
    """Seconds, or None for "full"."""
    if text == "full":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number of seconds nor full.") from None


Layer = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MODEL,
        help="Transformer layer to read: 0 is the input of the first layer. Default: the last layer.",
    ),
]
Window = Annotated[
    float | None,
    typer.Option(
        parser=_window,
        metavar="SECONDS|full",
        rich_help_panel=WINDOWS,
        help="Length of the windows in seconds, or full for each sound as a whole. A remainder shorter than 0.5 s "
        "joins the last window.",
    ),
]
Hop = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        rich_help_panel=WINDOWS,
        help="Time from the start of one window to the start of the next. Default: the length of a window.",
    ),
]
Views = Annotated[
    int,
    typer.Option(
        min=1,
        rich_help_panel=WINDOWS,
        help="For short sounds: classify each window this many times, shifted by fractions of the model's 160 ms step, "
        "and average.",
    ),
]
BatchSeconds = Annotated[
    float, typer.Option(rich_help_panel=COMPUTING, help="Seconds of audio in a batch. Less needs less memory.")
]
Device = Annotated[
    str, typer.Option(rich_help_panel=COMPUTING, help="cpu, cuda, cuda:1, mps and so on; auto: a GPU if there is one.")
]
Engine = Annotated[
    Engines | None,
    typer.Option(
        rich_help_panel=COMPUTING,
        help="torch; on the CPU also onnx (ONNX Runtime) or openvino. Default: onnx for .onnx files, otherwise torch.",
    ),
]
Jobs = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=COMPUTING, help="Number of decoding threads. Default: up to 4.")
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Also search the folders that symbolic links lead to, each once.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace the output if it exists.")
]

Update = Annotated[
    bool,
    typer.Option(
        "--update",
        rich_help_panel=OUTPUT,
        help="If the output exists, compute only files that were added or changed since (by size and time), and drop "
        "those that are gone.",
    ),
]

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        rich_help_panel=COMPUTING,
        help=f"Compute on a Ray cluster. {ADDRESSES}. Default address: {AUTO}.",
    ),
]
Actors = Annotated[
    int | None,
    typer.Option(
        min=1,
        rich_help_panel=COMPUTING,
        help="With --ray: number of processes that compute. Default: one for each GPU of the cluster, or else one for "
        "each CPU core.",
    ),
]


def check_actors(ray: str | None, actors: int | None) -> None:
    """Raise a `SettingsError` where there is a number of actors without Ray."""
    if actors is not None and ray is None:
        raise SettingsError("--actors is for runs with --ray; on one machine --jobs says how many threads decode.")


@contextmanager
def display(total: Callable[[], int | None], done: int) -> Iterator[Progress]:
    """A bar for a run, and a word if it goes on where an earlier one was."""
    if done:
        total_text = "" if (number := total()) is None else f" of {number:,}"
        remark(f"Going on behind sound {done:,}{total_text}.")
    with audio_progress(total, done) as progress:
        yield progress


def write(
    inputs: list[str],
    output: str,
    model: str,
    plan: Plan,
    what: str,
    *,
    engine: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    follow_links: bool = False,
    ray: str | None = None,
    actors: int | None = None,
) -> None:
    """Write a table of ``what``, and say how it went; exit status 1 where sounds were left out."""
    check_actors(ray, actors)
    write_rows = write_table if ray is None else partial(write_table_on_ray, address=ray, actors=actors)
    result = write_rows(
        inputs,
        output,
        model,
        plan,
        engine=engine,
        device=device,
        dtype=dtype,
        jobs=jobs,
        overwrite=overwrite,
        update=update,
        follow_links=follow_links,
        display=display,
        on_failure=skipped,
    )
    if result.complete:
        complain(f"{result.path} is complete already; there is nothing to do.", "Note")
    elif update and (result.kept or result.dropped) and not result.failures:
        new = result.sounds - result.kept
        remark(f"{result.path}: {files(new)} computed, {result.kept:,} kept, rows of {result.dropped:,} dropped.")
    elif result.failures and isinstance(result.path, Path) and not result.path.exists():
        complain(f"{none_read(result.sounds)}, so there is no table; {result.errors} says why.")
        raise typer.Exit(2)
    elif result.failures:
        succeeded = result.sounds - result.failures
        listed = f"{result.errors} lists those that could not be read"
        complain(f"{result.path} has {succeeded:,} of {files(result.sounds)}; {listed}.")
    else:
        remark(f"{result.path}: {what} of {files(result.sounds)}.")
    if result.failures:
        raise typer.Exit(1)
