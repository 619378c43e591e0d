"""``torchbeats tokens``: sounds → a table of acoustic labels."""

from __future__ import annotations

from typing import Annotated

import typer

from torchbeats.cli.tables import (
    MODEL,
    NAMES,
    Actors,
    BatchSeconds,
    Device,
    FollowLinks,
    Inputs,
    Jobs,
    Output,
    Overwrite,
    Ray,
    Window,
    write,
)
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, TokenPlan


def tokens(
    inputs: Inputs,
    output: Output,
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", rich_help_panel=MODEL, help=NAMES)],
    window: Window = WINDOW_SECONDS,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    device: Device = "auto",
    jobs: Jobs = None,
    follow_links: FollowLinks = False,
    overwrite: Overwrite = False,
    ray: Ray = None,
    actors: Actors = None,
) -> None:
    """Compute acoustic tokens of sounds: one table with one row per file.

    Its columns are path; start and end of each step of 160 ms, in seconds; and labels, steps × frequency bands, low
    frequencies first. In .npz, labels, start and end have one row per step, and file is the index of its path.

    A file that cannot be read is reported, listed in OUTPUT.errors.jsonl and left out; the exit status is then 1. To
    continue a run that was stopped, give the same command again.
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
        ray=ray,
        actors=actors,
    )
