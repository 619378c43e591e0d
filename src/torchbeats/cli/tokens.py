"""``torchbeats tokens``: sounds → a table of acoustic labels."""

from __future__ import annotations

from typing import Annotated

import typer

from torchbeats.cli.tables import (
    NAMES,
    BatchSeconds,
    Device,
    FollowLinks,
    Inputs,
    Jobs,
    Output,
    Overwrite,
    Window,
    write,
)
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, TokenPlan


def tokens(
    inputs: Inputs,
    output: Output,
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help=NAMES)],
    window: Window = WINDOW_SECONDS,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    device: Device = "auto",
    jobs: Jobs = None,
    follow_links: FollowLinks = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn sounds into acoustic labels: one table with a row a file.

    Its columns are path, start and end (seconds, of each step of 160 ms), and labels: steps × bands, low frequencies
    first. In .npz, labels, start and end have a row a step, and file tells the index of each step's path.

    A file that cannot be read is reported, listed in OUTPUT.errors.jsonl and left out, and the exit status is 1. A run
    that was stopped goes on where it was when the same command is given again.
    """
    plan = TokenPlan(window=window, batch_seconds=batch_seconds)
    write(
        inputs,
        output,
        tokenizer,
        plan,
        "tokens",
        device=device,
        jobs=jobs,
        overwrite=overwrite,
        follow_links=follow_links,
    )
