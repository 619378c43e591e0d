"""``torchbeats tokens``: sounds → a table of acoustic labels."""

from __future__ import annotations

from typing import Annotated

import typer

from torchbeats.cli.tables import (
    NAMES,
    BatchSeconds,
    Device,
    Inputs,
    Jobs,
    Output,
    Overwrite,
    Window,
    described,
    device_called,
    fill,
)
from torchbeats.data.inputs import find_audio
from torchbeats.files import sha256
from torchbeats.loading import load
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, TokenPlan, label_type
from torchbeats.tables.store import Store
from torchbeats.version import __version__
from torchbeats.weights import hub


def tokens(
    inputs: Inputs,
    output: Output,
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help=NAMES)],
    window: Window = WINDOW_SECONDS,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    device: Device = "auto",
    jobs: Jobs = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn sounds into acoustic labels: one table with a row a file.

    Its columns are path, start and end (seconds, of each step of 160 ms), and labels: steps × bands, low frequencies
    first. In .npz, labels, start and end have a row a step, and file tells the index of each step's path.

    A file that cannot be read is reported, listed in OUTPUT.errors.jsonl and left out, and the exit status is 1. A run
    that was stopped goes on where it was when the same command is given again.
    """
    try:
        plan = TokenPlan(window=window, batch_seconds=batch_seconds)
        place = device_called(device)
    except (ValueError, RuntimeError, AssertionError) as error:  # PyTorch asserts that it has CUDA
        raise typer.BadParameter(str(error)) from error
    paths = find_audio(inputs)
    weights = hub.resolve(tokenizer)
    model = load(weights, device=place)
    try:
        plan.check(model)
    except ValueError as error:
        raise typer.BadParameter(f"{tokenizer}: {error}") from error
    about = {
        "torchbeats": __version__,
        "tokenizer": tokenizer,
        "weights": f"sha256:{sha256(weights)}",
        "codes": model.cfg.quant_n,
        "bands": model.grid.bands,
        "window": plan.window,
        "batch_seconds": plan.batch_seconds,
        "inputs": described(paths),
    }
    store = Store(output, about, model.grid.bands, overwrite, column="labels", dtype=label_type(model), by_file=True)
    fill(store, paths, model, plan, jobs, "tokens")
