"""``torchbeats embed``: sounds → a table of embeddings."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from torchbeats.cli.console import complain
from torchbeats.cli.tables import (
    NAMES,
    BatchSeconds,
    Device,
    Engine,
    FollowLinks,
    Inputs,
    Jobs,
    Output,
    Overwrite,
    Window,
    write,
)
from torchbeats.loading import DTYPES
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan
from torchbeats.pooling import POOLINGS
from torchbeats.weights import hub

Pool = Enum("Pool", {name: name for name in POOLINGS}, type=str)  # type: ignore[misc]
Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]


def embed(
    inputs: Inputs,
    output: Output,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"{NAMES} Default: the small built-in model.")
    ] = None,
    pool: Annotated[
        Pool,
        typer.Option(help=f"What a row is: {'; '.join(f'{name}: {mode.about}' for name, mode in POOLINGS.items())}."),
    ] = Pool.mean,  # type: ignore[attr-defined]
    layer: Annotated[
        int | None, typer.Option(help="Whose output: 0 is the input to the first layer. Default: the last.")
    ] = None,
    window: Window = WINDOW_SECONDS,
    hop: Annotated[
        float | None, typer.Option(help="Seconds from a window's start to the next. Default: the window.")
    ] = None,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    engine: Engine = None,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Numbers to compute in.")] = Dtype.float32,  # type: ignore[attr-defined]
    jobs: Jobs = None,
    follow_links: FollowLinks = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn sounds into embeddings: one table with the columns path, start, end (seconds) and embedding.

    A file that cannot be read is reported, listed in OUTPUT.errors.jsonl and left out, and the exit status is 1. A run
    that was stopped goes on where it was when the same command is given again.
    """
    plan = EmbeddingPlan(pool.value, layer, hop, window=window, batch_seconds=batch_seconds)
    if model is None:
        complain(hub.BUILT_IN_NOTE, "Note")
    write(
        inputs,
        output,
        model or hub.BUILT_IN,
        plan,
        "embeddings",
        engine=engine and engine.value,
        device=device,
        dtype=DTYPES[dtype.value],
        jobs=jobs,
        overwrite=overwrite,
        follow_links=follow_links,
    )
