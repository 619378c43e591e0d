"""``torchbeats embed``: sounds → a table of embeddings."""

from __future__ import annotations

import hashlib
import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from torchbeats import __version__, checkpoint, hub
from torchbeats.cli.console import audio_progress, complain, remark
from torchbeats.config import BEATsConfig
from torchbeats.files import sha256
from torchbeats.inference import BATCH_SECONDS, POOLS, WINDOW_SECONDS, Plan, groups
from torchbeats.inputs import find_audio
from torchbeats.model import BEATs
from torchbeats.store import Store

Pool = Enum("Pool", {name: name for name in POOLS}, type=str)  # type: ignore[misc]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Sound files; folders, searched with all below them; lists (.csv, .txt, .jsonl); - for paths on "
            "standard input.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table: .parquet or .npz.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A name from `torchbeats models`, a checkpoint file, or owner/repo or owner/repo/file on the Hugging "
            "Face Hub, with @revision behind it if need be.",
        ),
    ],
    pool: Annotated[
        Pool,
        typer.Option(
            help="A row a window: mean over its patches, or bands (mean over time, 8 frequency bands kept). A row a "
            "160 ms step: steps (mean over its bands), or patches (all of them)."
        ),
    ] = Pool.mean,  # type: ignore[attr-defined]
    layer: Annotated[
        int | None, typer.Option(help="Whose output: 0 is the input to the first layer. Default: the last.")
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            help="Seconds of audio that the model sees at once. A rest of less than 0.5 s joins the last window."
        ),
    ] = WINDOW_SECONDS,
    hop: Annotated[
        float | None, typer.Option(help="Seconds from a window's start to the next. Default: the window.")
    ] = None,
    batch_seconds: Annotated[
        float, typer.Option(help="Seconds of audio in a batch; less takes less memory.")
    ] = BATCH_SECONDS,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …; auto takes a GPU if there is one.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Numbers to compute in.")] = Dtype.float32,  # type: ignore[attr-defined]
    jobs: Annotated[int | None, typer.Option(min=1, help="Threads that decode. Default: up to 4.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Turn sounds into embeddings: one table with the columns path, start, end (seconds) and embedding.

    A file that cannot be read is reported, listed in OUTPUT.errors.jsonl and left out, and the exit status is 1. A run
    that was stopped goes on where it was when the same command is given again.
    """
    try:
        plan = Plan(pool.value, layer, window, hop, batch_seconds)
        place = _device(device)
    except (ValueError, RuntimeError, AssertionError) as error:  # PyTorch asserts that it has CUDA
        raise typer.BadParameter(str(error)) from error
    paths = find_audio(inputs)
    weights = hub.resolve(model)
    network = BEATs(checkpoint.read(weights, expect=BEATsConfig)).to(place, DTYPES[dtype.value])
    if layer is not None and not 0 <= layer <= network.cfg.encoder_layers:
        raise typer.BadParameter(f"The model has {network.cfg.encoder_layers} layers; there is no layer {layer}.")
    dim, by_band = network.cfg.encoder_embed_dim, plan.pool in ("bands", "patches")
    width = dim * network.grid.bands if by_band else dim
    about = {
        "torchbeats": __version__,
        "model": model,
        "weights": f"sha256:{sha256(weights)}",
        "pool": plan.pool,
        "shape": [network.grid.bands, dim] if by_band else [dim],
        "layer": plan.layer,
        "window": plan.window,
        "hop": plan.hop,
        "batch_seconds": plan.batch_seconds,
        "dtype": dtype.value,
        "inputs": f"{len(paths)} files, {_fingerprint(paths)}",
    }
    store = Store(output, about, width, overwrite)
    if store.complete:
        complain(f"{output} is complete already; there is nothing to do.", "Note")
        raise typer.Exit(1 if store.failed else 0)
    if any(store.position):
        remark(f"Going on behind file {store.position.inputs:,} of {len(paths):,}.")
    with audio_progress(len(paths), store.position.inputs) as listener:
        sounds = [(path, path) for path in paths]
        for group in groups(sounds, network, plan, start=store.position, jobs=jobs, listener=listener):
            for path, reason in group.failures:
                complain(f"{path}: {reason}.", "Skipped")
            store.append(group)
    store.finish()
    if store.failed:
        good = len(paths) - store.failed
        complain(f"{output} has {good:,} of {len(paths):,} files; {store.errors} lists those that could not be read.")
        raise typer.Exit(1)
    remark(f"{output}: embeddings of {len(paths):,} files.")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    torch.empty(0, device=device)  # says at once if it is not there
    return device


def _fingerprint(paths: list[str]) -> str:
    """Tells one list of files from another, and notices a file whose size has changed."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.path.getsize(path)
        except OSError:
            size = -1
        digest.update(f"{path!r} {size}\n".encode())
    return digest.hexdigest()[:16]
