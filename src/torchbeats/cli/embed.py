"""``torchbeats embed``: sounds → a table of embeddings."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from torchbeats.cli.tables import (
    COMPUTING,
    MODEL,
    NAMES,
    Actors,
    BatchSeconds,
    Device,
    Engine,
    FollowLinks,
    Hop,
    Inputs,
    Jobs,
    Layer,
    Output,
    Overwrite,
    Ray,
    Update,
    Window,
    or_built_in,
    write,
)
from torchbeats.loading import DTYPES
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan
from torchbeats.pooling import POOLINGS

Pool = Enum("Pool", {name: name for name in POOLINGS}, type=str)  # type: ignore[misc]
Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]


def embed(
    inputs: Inputs,
    output: Output,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", rich_help_panel=MODEL, help=f"{NAMES} Default: the small built-in model."),
    ] = None,
    pool: Annotated[
        Pool,
        typer.Option(
            metavar="POOLING",
            rich_help_panel=MODEL,
            help=f"Pooling. {'; '.join(f'{name}: {mode.about}' for name, mode in POOLINGS.items())}.",
        ),
    ] = Pool.mean,  # type: ignore[attr-defined]
    layer: Layer = None,
    window: Window = WINDOW_SECONDS,
    hop: Hop = None,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    engine: Engine = None,
    device: Device = "auto",
    dtype: Annotated[
        Dtype,
        typer.Option(
            metavar="DTYPE",
            rich_help_panel=COMPUTING,
            help=f"Number format of the computation: {', '.join(DTYPES)}.",
        ),
    ] = Dtype.float32,  # type: ignore[attr-defined]
    jobs: Jobs = None,
    follow_links: FollowLinks = False,
    overwrite: Overwrite = False,
    update: Update = False,
    ray: Ray = None,
    actors: Actors = None,
) -> None:
    """Compute embeddings of sounds: one table with the columns path, start, end (seconds) and embedding.

    A file that cannot be read is reported, listed in OUTPUT.errors.jsonl and left out; the exit status is then 1. To
    continue a run that was stopped, give the same command again.
    """
    plan = EmbeddingPlan(pool.value, layer, hop, window=window, batch_seconds=batch_seconds)
    write(
        inputs,
        output,
        or_built_in(model),
        plan,
        "embeddings",
        engine=engine and engine.value,
        device=device,
        dtype=DTYPES[dtype.value],
        jobs=jobs,
        overwrite=overwrite,
        update=update,
        follow_links=follow_links,
        ray=ray,
        actors=actors,
    )
